"""Attention to chosen blocks: against the masked softmax of all, with few numbers held at once."""

import pytest
import torch

from regardant.core import selected_blocks as under_test
from regardant.core.selected_blocks import attend_blocks


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plainly(q, k, v, chosen, scale, sees):
    """Each block of queries by itself, its keys listed one by one."""
    share = q.shape[1] // k.shape[2]
    outs = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for block, head, row in torch.cartesian_prod(*(torch.arange(side) for side in q.shape[:3])).tolist():
        keys = torch.cat([k[at, :, head // share] for at in chosen[block]])
        values = torch.cat([v[at, :, head // share] for at in chosen[block]])
        if sees is not None:
            seen = sees[block, row if sees.shape[1] > 1 else 0]
            keys, values = keys[seen], values[seen]
        weights = (keys @ q[block, head, row] * scale).softmax(0)
        outs[block, head, row] = weights @ values
    return outs


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("rows", [None, 1, 3])
def test_blocks_are_the_plain_softmax_and_so_are_their_gradients(heads, rows):
    (h, g), (p, r, u, s, n) = heads, (5, 3, 4, 6, 2)
    inputs = [drawn(p, h, r, 8), drawn(u, s, g, 8, seed=1), drawn(u, s, g, 7, seed=2)]
    inputs = [x.requires_grad_() for x in inputs]
    generator = torch.Generator().manual_seed(3)
    chosen = torch.rand(p, u, generator=generator).topk(n).indices
    sees = None
    if rows is not None:
        sees = torch.rand(p, rows, n * s, generator=generator) < 0.6
        sees[1, 0] = False
    found, right = (way(*inputs, chosen, scale=0.4, sees=sees) for way in (attend_blocks, plainly))
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
    if sees is not None:
        assert (found[1, :, 0] == 0).all()
    weight = drawn(*found.shape, seed=4)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), inputs) for out in (found, right))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_keys_are_held_for_some_blocks_at_a_time(monkeypatch):
    q, k, v = drawn(12, 2, 4, 8), drawn(6, 4, 2, 8, seed=1), drawn(6, 4, 2, 8, seed=2)
    chosen = torch.arange(24).view(12, 2) % 6
    whole = attend_blocks(q, k, v, chosen, scale=1.0)
    most = 3 * 2 * 4 * 2 * 8
    monkeypatch.setattr(under_test, "NUMBERS", most)
    held, real = [], torch.Tensor.index_select
    monkeypatch.setattr(
        torch.Tensor, "index_select", lambda x, *rest: (held.append(real(x, *rest)), held[-1])[1]
    )
    assert torch.equal(attend_blocks(q, k, v, chosen, scale=1.0), whole)
    assert len(held) == 8 and max(each.numel() for each in held) <= most


def test_what_does_not_fit_is_refused():
    q, k = drawn(2, 3, 4, 8), drawn(5, 4, 2, 8)
    with pytest.raises(ValueError, match="2 heads of keys cannot be shared by 3 heads of queries"):
        attend_blocks(q, k, k, torch.zeros(2, 1, dtype=torch.long), scale=1.0)
    with pytest.raises(ValueError, match="chosen is for 1 blocks of queries, but there are 2"):
        attend_blocks(q, k[:, :, :1], k[:, :, :1], torch.zeros(1, 1, dtype=torch.long), scale=1.0)
