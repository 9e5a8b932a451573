"""Selecting candidates, and attention to the spans that they stand for."""

import pytest
import torch

from regardant.core.selected import attend_spans, best, rows_at, strongest


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_spans(q, k, v, first, last, scale, real=None):
    """Every pair, every span by itself."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    at = torch.arange(k.shape[2])
    sees = (at >= first[..., None]) & (at <= last[..., None])
    if real is not None:
        sees = sees & real[:, None, None, None]
    none = ~sees.any(-1, keepdim=True)
    logits = (q @ k.mT * scale)[:, :, :, None].masked_fill(~(sees | none), -torch.inf)
    weights = logits.softmax(-1).masked_fill(none, 0)
    return weights @ v[:, :, None], logits.logsumexp(-1), ~none[..., 0]


SIZES = [
    (2, 4, 2, 7, 33, 5, 3, 8),
    (1, 1, 1, 1, 1, 4, 1, 16),
    (2, 2, 2, 40, 40, 8, 2, 5),
    (1, 6, 2, 9, 64, 3, 4, 64),
]


@pytest.mark.parametrize("b, h, g, m, n, e, s, tile", SIZES)
@pytest.mark.parametrize("padded", [False, True])
def test_spans_are_the_plain_softmax_and_so_are_their_gradients(b, h, g, m, n, e, s, tile, padded):
    q, k, v = drawn(b, h, m, 4), drawn(b, g, n, 4, seed=1), drawn(b, g, n, e, seed=2)
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(-2, n, (b, h, m, s), generator=generator)
    last = first + torch.randint(-2, 12, (b, h, m, s), generator=generator)
    real = torch.rand(b, n, generator=generator) < 0.6 if padded else None
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out, lse = attend_spans(q, k, v, first, last, tile=tile, scale=0.3, real=real)
    right, sums, some = plain_spans(q, k, v, first, last, 0.3, real)
    torch.testing.assert_close(out, right, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse[some], sums[some], rtol=0, atol=1e-12)
    assert (lse[~some] == -torch.inf).all()
    weight, more = drawn(*out.shape, seed=4), drawn(*lse.shape, seed=5)
    ours = torch.autograd.grad((out * weight).sum() + (lse * more)[some].sum(), inputs)
    theirs = torch.autograd.grad((right * weight).sum() + (sums * more)[some].sum(), inputs)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 3, 16, 1000])
def test_the_tile_does_not_change_the_result(tile):
    q, k, v = drawn(1, 2, 20, 4), drawn(1, 1, 50, 4, seed=1), drawn(1, 1, 50, 4, seed=2)
    first = torch.randint(0, 50, (1, 2, 20, 3), generator=torch.Generator().manual_seed(0))
    out, lse = attend_spans(q, k, v, first, first + 9, tile=tile, scale=1.0)
    right, sums, _ = plain_spans(q, k, v, first, first + 9, 1.0)
    torch.testing.assert_close(out, right, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, sums, rtol=0, atol=1e-12)


def test_no_span_at_all_gives_an_empty_result():
    q, k, v = drawn(1, 2, 3, 4), drawn(1, 2, 5, 4), drawn(1, 2, 5, 6)
    none = torch.zeros(1, 2, 3, 0, dtype=torch.long)
    out, lse = attend_spans(q, k, v, none, none, tile=4, scale=1.0)
    assert out.shape == (1, 2, 3, 0, 6) and lse.shape == (1, 2, 3, 0)


def test_the_best_are_the_largest_and_of_equal_ones_the_first():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-torch.inf, 0.0, -torch.inf, -torch.inf]])
    at, there = best(scores, 3)
    assert at[0].tolist() == [1, 2, 3] and there[0].all()
    assert at[1, 0] == 1 and there[1].tolist() == [True, False, False]
    longer, _ = best(torch.cat([scores, torch.full((2, 90), 3.0)], dim=-1), 2)
    assert longer[0].tolist() == [1, 2]


@pytest.mark.parametrize("pairs_a_row", [1, 2**20, 2**30])
def test_the_strongest_candidates_are_those_with_the_largest_scores(pairs_a_row):
    scores = drawn(2, 4, 9, 6).masked_fill(torch.arange(6) >= torch.arange(9)[:, None], -torch.inf)
    at, there = strongest(lambda rows: scores[:, :, rows], 9, 2, pairs_a_row=pairs_a_row)
    right = scores.sort(-1, descending=True).indices[..., :2]
    assert torch.equal(at[there], right[there])
    assert torch.equal(there.sum(-1)[0, 0], torch.tensor([0, 1, 2, 2, 2, 2, 2, 2, 2]))


def test_rows_by_position_for_heads_that_share():
    x, at = drawn(2, 2, 7, 3), torch.randint(0, 7, (2, 4, 5, 2), generator=torch.Generator().manual_seed(0))
    taken = rows_at(x, at)
    assert torch.equal(taken[1, 3, 4, 1], x[1, 1, at[1, 3, 4, 1]])
    assert torch.equal(taken[0, 1, 2, 0], x[0, 0, at[0, 1, 2, 0]])


def test_wrong_spans_say_what_would_be_right():
    q, k = drawn(1, 2, 3, 4), drawn(1, 2, 5, 4)
    spans = torch.zeros(1, 2, 3, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="last is"):
        attend_spans(q, k, k, spans, spans[..., :0], tile=4, scale=1.0)
    with pytest.raises(ValueError, match="queries to have spans"):
        attend_spans(q, k, k, spans[:, :, :2], spans[:, :, :2], tile=4, scale=1.0)
    with pytest.raises(ValueError, match="tile is 0"):
        attend_spans(q, k, k, spans, spans, tile=0, scale=1.0)
