"""Performer: softmax by positive random features."""

import pytest
import torch

from regardant.core.pattern import Causal
from regardant.sequence.performer import EPSILON, Performer, RandomFeatureRule, orthogonal_directions


def heads(n, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, n, width, dtype=torch.float64, generator=generator) for _ in range(3)]


def rule(width=4, features=None, seed=0):
    torch.manual_seed(seed)
    return RandomFeatureRule(width, features=features).double()


def test_features_written_out():
    own, (q, k, v) = rule(features=3), heads(5)
    out = own(q, k, v)
    q, k = q / 2**0.5, k / 2**0.5  # d^(-1/4) each
    along_q, along_k = q @ own.directions.T, k @ own.directions.T
    features_q = (
        along_q - q.square().sum(-1, keepdim=True) / 2 - along_q.amax(-1, keepdim=True)
    ).exp() + EPSILON
    largest = along_k.amax((-1, -2), keepdim=True)
    features_k = (along_k - k.square().sum(-1, keepdim=True) / 2 - largest).exp() + EPSILON
    weights = features_q @ features_k.mT
    torch.testing.assert_close(out, weights @ v / weights.sum(-1, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_with_many_features_it_is_softmax(causal):
    own, (q, k, v) = rule(features=5000), heads(6)
    q, k = q / 2, k / 2
    logits = q @ k.mT / 2
    if causal:
        logits = logits.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    out = own(q, k, v, pattern=Causal() if causal else None)
    assert (out - logits.softmax(-1) @ v).abs().mean() < 0.05


def test_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_vectors():
    drawn = orthogonal_directions(4000, 8, torch.Generator().manual_seed(0)).view(500, 8, 8)
    inner = drawn @ drawn.mT
    off_diagonal = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-10
    assert abs(drawn.square().sum(-1).mean() - 8) < 0.2


def test_pitfall_the_largest_key_of_all_must_not_reach_the_past():
    """A loud key changes the keys' scale, and through ε the past: not where order counts."""
    own, (q, k, v) = rule(), heads(8)
    loud = k.clone()
    loud[:, :, 7] *= 60
    one, other = (own(q, keys, v, pattern=Causal())[:, :, :7] for keys in (k, loud))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_pitfall_draws_are_fixed_between_calls_and_others_only_when_asked():
    own, (q, k, v) = rule(), heads(8)
    own.train()
    first = own(q, k, v)
    assert torch.equal(first, own(q, k, v))
    own.redraw(torch.Generator().manual_seed(5))
    assert (first - own(q, k, v)).abs().max() > 1e-3
    assert "directions" in own.state_dict()


def test_a_scale_holds_for_a_prompt_and_a_context_too():
    torch.manual_seed(0)
    x, context = torch.randn(2, 2, 9, 16, dtype=torch.float64)
    layer = Performer(16, 2, causal=True, scale=0.9).double()
    whole, (_, state) = layer(x), layer.prefill(x[:, :5])
    for t in range(5, 9):
        y, state = layer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)
    layer = Performer(16, 2, causal=True, context_dim=16, scale=0.9).double()
    whole, state = layer(x, context), layer.start(2, context=context)
    for t in range(9):
        y, state = layer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)


def test_number_of_features():
    assert RandomFeatureRule(16).directions.shape == (44, 16)  # 16 ln 16 = 44.4
    assert Performer(32, 4, features=5).rule.directions.shape == (5, 8)


def test_weights_are_never_negative_and_sum_to_one():
    own, (q, k, _) = rule(), heads(7)
    weights = own(q, k, torch.eye(7, dtype=torch.float64).expand(2, 2, -1, -1))
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 7, dtype=torch.float64))


def test_large_vectors_stay_finite_in_single_precision():
    own, (q, k, v) = rule(), (x.float() * 40 for x in heads(50))
    for pattern in (None, Causal()):
        assert own.float()(q, k, v, pattern=pattern).isfinite().all()


@pytest.mark.parametrize(
    ("own", "word"), [({"features": 0}, "features is 0"), ({"scale": -1.0}, "scale is -1")]
)
def test_bad_input(own, word):
    with pytest.raises(ValueError, match=word):
        Performer(32, 4, **own)
