"""Attention through feature maps: the sums that all such rules share."""

import pytest
import torch

from regardant.core.feature_map import FeatureRule
from regardant.core.pattern import Causal, Padding
from regardant.core.rule import HeadShape


class Exponential(FeatureRule):
    """φ = exp(x), ψ = exp(x)/2: simple enough to be worked by hand."""

    def of_queries(self, q, sight, scale):
        return q.exp()

    def of_keys(self, k, sight, scale):
        return k.exp() / 2


def heads(*lengths, groups=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = [2, groups, groups]
    return [
        torch.randn(3, h, n, 4, dtype=torch.float64, generator=generator) for h, n in zip(counts, lengths)
    ]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_the_quotient_of_sums_written_out(causal, groups):
    q, k, v = heads(7, 7, 7, groups=groups)
    out = Exponential()(q, k, v, pattern=Causal() if causal else None)
    for h in range(2):
        g = h * groups // 2
        for t in range(7):
            seen = slice(t + 1 if causal else None)
            weights = (q[:, h, t, None].exp() * k[:, g, seen].exp()).sum(-1)
            expected = (weights[..., None] * v[:, g, seen]).sum(1) / weights.sum(1, keepdim=True)
            torch.testing.assert_close(out[:, h, t], expected, rtol=0, atol=1e-12)


def test_padding_sends_nothing_however_loud():
    q, k, v = heads(5, 5, 5)
    real = torch.tensor([True, True, False, True, False]).expand(3, 5)
    expected = Exponential()(q, k[:, :, [0, 1, 3]], v[:, :, [0, 1, 3]])
    k[:, :, [2, 4]], v[:, :, [2, 4]] = 1e4, 7.0
    torch.testing.assert_close(Exponential()(q, k, v, pattern=Padding(real)), expected, rtol=0, atol=1e-12)


def test_a_query_that_sees_nothing_gives_zeros():
    q, k, v = heads(5, 5, 5)
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    assert (Exponential()(q, k, v, pattern=Padding(nothing)) == 0).all()


def test_steps_go_on_from_a_prompt_and_over_a_context():
    rule, (q, k, v) = Exponential(), heads(9, 9, 9, groups=1)
    shape = HeadShape(3, 2, 1, 4, 4, q.device, q.dtype)
    whole = rule(q, k, v, pattern=Causal())
    state = rule.start(shape, pattern=Causal(), keys=k[:, :, :5], values=v[:, :, :5])
    for t in range(5, 9):
        out, state = rule.step(q[:, :, t], k[:, :, t], v[:, :, t], state)
        torch.testing.assert_close(out, whole[:, :, t], rtol=0, atol=1e-12)
    assert (state.length, state.asked) == (9, 9)
    whole, state = rule(q, k, v), rule.start(shape, keys=k, values=v)
    for t in range(9):
        out, state = rule.step(q[:, :, t], None, None, state)
        torch.testing.assert_close(out, whole[:, :, t], rtol=0, atol=1e-12)
    assert (state.length, state.asked) == (9, 9)


def test_half_precision_is_summed_in_single():
    q, k, v = (x.bfloat16() for x in heads(300, 300, 300))
    exact = Exponential()(q.double(), k.double(), v.double())
    error = (Exponential()(q, k, v).double() - exact).abs().max()
    assert error < 2**-8 * exact.abs().max()
