"""Linear attention as a recurrence, its normalisers, and softmax as its limit."""

from itertools import pairwise
from math import comb

import pytest
import torch
import torch.nn.functional as F

from regardant.core.linear_time_varying import Factors, convolution, recur
from regardant.sequence.linear_attention import LinearAttention, taylor_features

NORMALISERS = ["sum", "exp", "softplus", "sigmoid", "none"]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return LinearAttention(16, 2, **config).double()


def draw(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def eta(mixer, x, q, k):
    """η_t [b, h, n] as the equations have it."""
    if mixer.normaliser == "sum":
        return torch.einsum("bhtf,bhtf->bht", q, k.cumsum(2))
    if mixer.normaliser == "none":
        return q.new_ones(q.shape[:3])
    raised = (x @ mixer.to_scale.weight.T + mixer.to_scale.bias).transpose(1, 2)
    return {"exp": torch.exp, "softplus": F.softplus, "sigmoid": torch.sigmoid}[mixer.normaliser](raised)


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("features", ["elu", "taylor"])
@pytest.mark.parametrize("n", [1, 17, 65])
def test_the_layer_is_the_sum_over_the_past_divided_by_eta(normaliser, features, n):
    mixer, x = layer(normaliser=normaliser, features=features, states=3), draw(2, n, 16)
    with torch.no_grad():
        q, k, v = (mixer.split(x @ w.weight.T) for w in (mixer.to_q, mixer.to_k, mixer.to_v))
        q, k = mixer.raised(q), mixer.raised(k)
        heads = (q @ k.mT).tril() @ v / eta(mixer, x, q, k)[..., None]
        expected = heads.transpose(1, 2).flatten(2) @ mixer.to_out.weight.T
        torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(mixer.reference(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_a_prompt_and_then_steps_give_what_forward_gives(normaliser):
    mixer, x = layer(normaliser=normaliser), draw(2, 40, 16)
    with torch.no_grad():
        y, state = mixer.prefill(x[:, :33])
        torch.testing.assert_close(y, mixer(x)[:, :33], rtol=0, atol=1e-9)
        for t in range(33, 40):
            y, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, mixer(x)[:, t], rtol=0, atol=1e-9)
        assert state.nbytes == mixer.start(2).nbytes


@pytest.mark.parametrize("normaliser", ["exp", "softplus", "sigmoid"])
def test_a_learned_eta_is_the_frameworks_recurrence_with_the_ratio_as_its_transition(normaliser):
    """Λ_t = η_{t-1}/η_t and B_t = ψ(k_t)/η_t, token by token, against the division at the end."""
    mixer, x = layer(normaliser=normaliser), draw(2, 12, 16)
    with torch.no_grad():
        given = mixer.factors(x)
        scale = eta(mixer, x, given.read, given.write)[..., None, None]
        state = given.value.new_zeros(2, 2, 8, 8)
        for t in range(12):
            ratio = scale[:, :, t - 1] / scale[:, :, t] if t else 1.0
            wrote = given.write[:, :, t, :, None] * given.value[:, :, t, None]
            state = ratio * state + wrote / scale[:, :, t]
            y = torch.einsum("bhf,bhfe->bhe", given.read[:, :, t], state)
            torch.testing.assert_close(mixer.to_out(y.flatten(1)), mixer(x)[:, t], rtol=0, atol=1e-9)


def test_pitfall_the_ratio_of_two_etas_would_overflow_and_ours_does_not():
    mixer = layer(normaliser="exp").float()
    with torch.no_grad():
        mixer.to_scale.weight.zero_()
        mixer.to_scale.weight[:, 0] = 100.0
        mixer.to_scale.bias.zero_()
        x = draw(1, 50, 16).float()
        x[..., 0] = 0.8  # η = e^80 at every token
        x[:, 0, 0], x[:, 1, 0] = 0.8, -0.8
        assert torch.exp(torch.tensor(80.0) - torch.tensor(-80.0)).isinf()
        assert mixer(x).isfinite().all()
        assert mixer(x)[:, 2:].abs().max() < 1e-30


def test_pitfall_running_sums_divide_by_positive_features_alone():
    q = k = draw(1, 2, 200, 8)
    for features in ("elu", "taylor"):
        mixer = layer(features=features)
        weights = mixer.raised(5 * q) @ mixer.raised(5 * k).mT
        assert weights.min() > 0
    matrix = layer().mixing_matrix(draw(2, 30, 16))
    assert matrix[:, :, torch.ones(30, 30).tril().bool()].min() > 0


def test_pitfall_a_learned_eta_is_no_approximation_of_the_sum():
    """It cannot see the past: the same token, late in a sequence, has the same η, and the sum has not."""
    token = draw(1, 1, 16)
    learned, summed = layer(normaliser="exp"), layer()
    longer = token.expand(1, 40, 16)
    heads = recur(learned.factors(longer))[0]
    torch.testing.assert_close(heads[:, :, 39], 40 * heads[:, :, 0])
    torch.testing.assert_close(learned(longer)[:, 39], 40 * learned(longer)[:, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(summed(longer)[:, 39], summed(longer)[:, 0], rtol=0, atol=1e-9)


def test_products_of_taylor_features_are_the_series_and_their_number_is_counted():
    x, y = draw(5, 4), draw(5, 4, seed=2)
    exact = torch.exp((x * y).sum(-1) / 2)
    terms, errors = torch.zeros(5, dtype=torch.float64), []
    for order in range(7):
        factor = torch.tensor(1.0).double() if order == 0 else factor / order
        terms = terms + factor * ((x * y).sum(-1) / 2) ** order
        ours = (taylor_features(x, order) * taylor_features(y, order)).sum(-1)
        torch.testing.assert_close(ours, terms, rtol=0, atol=1e-10)
        assert taylor_features(x, order).shape[-1] == sum(comb(4 + p - 1, p) for p in range(order + 1))
        errors.append((ours - exact).abs().max().item())
    assert errors[6] < errors[4] < errors[2]


def test_softmax_attention_is_the_limit_of_taylor_features():
    q, k, v = draw(1, 1, 20, 3), draw(1, 1, 20, 3, seed=2), draw(1, 1, 20, 3, seed=3)
    right = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    errors = []
    for order in (2, 4, 6, 8, 10, 12):
        matrix = convolution(
            Factors(value=v, write=taylor_features(k, order), read=taylor_features(q, order))
        )
        errors.append((matrix @ v / matrix.sum(-1, keepdim=True) - right).abs().max().item())
    assert all(later < 0.5 * earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-3


def test_pitfall_systems_are_compared_at_equal_states():
    assert layer(states=5, normaliser="none").start(1).matrix.shape == (1, 2, 5, 8)
    assert layer(states=5, normaliser="none", features="taylor").start(1).matrix.shape == (1, 2, 21, 8)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"normaliser": "max"}, "normaliser is 'max'"),
        ({"features": "cosine"}, "features is 'cosine'"),
        ({"states": 0}, "states is 0"),
        ({"causal": False}, "causal=False"),
    ],
)
def test_bad_configuration_says_what_would_be_right(config, words):
    with pytest.raises(ValueError, match=words):
        layer(**config)


def test_bad_order():
    with pytest.raises(ValueError, match="order is -1"):
        taylor_features(draw(2, 2), -1)
