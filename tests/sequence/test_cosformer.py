"""cosFormer: ReLU features re-weighted by the cosine of the distance."""

from math import cos, pi

import pytest
import torch

from regardant.core.pattern import Causal
from regardant.sequence.cosformer import CosFormer, CosineRule


def heads(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, length, 4, dtype=torch.float64, generator=generator) for length in (m, n, n)]


@pytest.mark.parametrize(("m", "n", "causal", "span"), [(6, 6, False, 6), (6, 6, True, 20), (4, 9, False, 9)])
def test_weights_written_out(m, n, causal, span):
    q, k, v = heads(m, n)
    rule = CosineRule(max_length=span if causal else None)
    out = rule(q, k, v, pattern=Causal() if causal else None)
    for i in range(m):
        seen = range(i + 1 if causal else n)
        weights = [
            (q[:, :, i].relu() * k[:, :, j].relu()).sum(-1) * cos(pi / 2 * (i - j) / span) for j in seen
        ]
        total = sum(weights).clamp(min=1e-6)
        expected = sum(w[..., None] * v[:, :, j] for w, j in zip(weights, seen)) / total[..., None]
        torch.testing.assert_close(out[:, :, i], expected, rtol=0, atol=1e-12)


def test_pitfall_a_causal_output_does_not_depend_on_how_much_follows():
    torch.manual_seed(0)
    layer, x = CosFormer(32, 4, causal=True).double(), torch.randn(2, 40, 32, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[:, :11], layer(x[:, :11]), rtol=0, atol=1e-12)


def test_pitfall_causal_cross_attention_does_not_depend_on_the_number_of_queries():
    torch.manual_seed(0)
    layer = CosFormer(32, 4, causal=True, context_dim=32).double()
    x, context = torch.randn(2, 2, 40, 32, dtype=torch.float64)
    torch.testing.assert_close(layer(x, context)[:, :11], layer(x[:, :11], context), rtol=0, atol=1e-12)


def test_near_keys_weigh_more():
    ones = torch.ones(1, 1, 50, 4, dtype=torch.float64)
    weights = CosineRule()(ones, ones, torch.eye(50, dtype=torch.float64)[None, None])[0, 0]
    assert (weights >= 0).all()
    assert (weights[0].diff() < 0).all() and (weights[20, 20:].diff() < 0).all()


def test_queries_without_a_positive_key_give_zeros():
    q, k, v = heads(3, 3)
    assert (CosineRule()(q, -k.abs(), v) == 0).all()


def test_positions_beyond_the_reach_of_the_cosine_are_refused():
    layer = CosFormer(32, 4, causal=True, max_length=8)
    with pytest.raises(ValueError, match="reaches length 9, but max_length=8"):
        layer(torch.randn(1, 9, 32))
    state = layer.start(1)
    for _ in range(8):
        _, state = layer.step(torch.randn(1, 32), state)
    with pytest.raises(ValueError, match="reaches length 9"):
        layer.step(torch.randn(1, 32), state)
    with pytest.raises(ValueError, match="max_length is 0"):
        CosFormer(32, 4, max_length=0)
