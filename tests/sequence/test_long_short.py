"""Long-Short Transformer: near keys and compressed far ones under one softmax."""

import pytest
import torch
from torch.nn import functional as F

from regardant.core.pattern import Causal, Padding
from regardant.sequence.long_short import LongShort, LongShortRule


def rule(seed=0, **own):
    torch.manual_seed(seed)
    rule = LongShortRule(2, 4, **dict(window=6, rank=2, chunk=4, memory=8) | own).double()
    with torch.no_grad():
        for norm in (rule.near_norm, rule.far_norm):
            norm.weight.normal_(1, 0.2)
            norm.bias.normal_(0, 0.2)
    return rule


def heads(n, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 2, n, 4, dtype=torch.float64, generator=generator) for _ in range(3)]


def normed(norm, x):
    """[heads, d] → the same, normed over both."""
    return F.layer_norm(x.flatten(), (8,), norm.weight, norm.bias).view(2, 4)


def compressed(own, x, k):
    """[heads, n, d] → a list of `rank` entries [heads, d]."""
    share = (k @ own.projection).softmax(dim=1)
    return [normed(own.far_norm, (share[:, :, r, None] * x).sum(1)) for r in range(own.rank)]


@pytest.mark.parametrize("causal", [False, True])
def test_the_joint_softmax_written_out(causal):
    own, (q, k, v) = rule(), heads(17)
    out = own(q, k, v, pattern=Causal() if causal else None)
    q, k, v = q[0], k[0], v[0]
    for i in range(17):
        if causal:
            near = range(max(0, i - 5), i + 1)
            spans = [(4 * c, 4 * c + 4) for c in range(i // 4) if i // 4 - c <= 2]
        else:
            near = range(max(0, i // 6 * 6 - 3), min(17, i // 6 * 6 + 9))
            spans = [(0, 17)]
        keys = [normed(own.near_norm, k[:, j]) for j in near]
        values = [normed(own.near_norm, v[:, j]) for j in near]
        for first, end in spans:
            keys += compressed(own, k[:, first:end], k[:, first:end])
            values += compressed(own, v[:, first:end], k[:, first:end])
        keys, values = torch.stack(keys, 1), torch.stack(values, 1)
        expected = (q[:, None, i] @ keys.mT / 2).softmax(-1) @ values
        torch.testing.assert_close(out[0, :, i], expected[:, 0], rtol=0, atol=1e-12)


def test_pitfall_a_chunk_is_seen_compressed_only_when_it_is_over():
    own, (q, k, v) = rule(window=1), heads(12)
    out = own(q, k, v, pattern=Causal())
    changed = v.clone()
    changed[:, 0, 4, 0] += 1  # in the chunk of 4 … 7
    moved = (own(q, k, changed, pattern=Causal()) - out).abs().amax((0, 1, 3)) > 1e-9
    assert moved.nonzero().flatten().tolist() == [4, 8, 9, 10, 11]


def test_the_memory_ends():
    own, (q, k, v) = rule(window=1, memory=4), heads(16)
    changed = v.clone()
    changed[:, 0, 0, 0] += 1
    moved = own(q, k, changed, pattern=Causal()) - own(q, k, v, pattern=Causal())
    assert (moved.abs().amax((0, 1, 3)) > 1e-9).nonzero().flatten().tolist() == [0, 4, 5, 6, 7]


@pytest.mark.parametrize("causal", [False, True])
def test_padding_counts_for_nothing(causal):
    own, (q, k, v) = rule(), heads(19, batch=3)
    real = torch.rand(3, 19, generator=torch.Generator().manual_seed(1)) < 0.6
    real[2] = False
    pattern = Causal() & Padding(real) if causal else Padding(real)
    out = own(q, k, v, pattern=pattern)
    torch.testing.assert_close(out, own.reference(q, k, v, pattern=pattern), rtol=0, atol=1e-12)
    assert (out[2] == 0).all()


@pytest.mark.parametrize("prompt", [1, 4, 5, 23])
def test_a_prompt_is_gone_on_from(prompt):
    torch.manual_seed(0)
    layer = LongShort(8, 2, causal=True, window=5, chunk=4, memory=8).double()
    x = torch.randn(2, 30, 8, dtype=torch.float64)
    whole = layer(x)
    y, state = layer.prefill(x[:, :prompt])
    torch.testing.assert_close(y, whole[:, :prompt], rtol=0, atol=1e-12)
    for t in range(prompt, 30):
        y, state = layer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["window", "rank", "chunk", "memory"])
def test_bad_input(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        LongShort(32, 4, **{name: 0})
