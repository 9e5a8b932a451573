"""Linearised relative positions, and the norm without weights."""

import pytest
import torch

from regardant.core.linearized_relative import LinearizedRelative
from regardant.core.simple_rms_norm import SimpleRMSNorm


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_products_of_turned_vectors_are_weighted_by_the_cosine_of_their_distance():
    position = LinearizedRelative(2, 3).double()
    q, k = draw(1, 2, 7, 3), draw(1, 2, 7, 3, seed=1)
    scores = position.turn(q) @ position.turn(k).mT
    away = torch.arange(7)[:, None] - torch.arange(7)
    weight = torch.cos(away[None, :, :, None] * position.theta[:, :, None])
    expected = torch.einsum("bhtc,bhsc,htsc->bhts", q, k, weight)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12)


def test_rates_fall_through_all_heads():
    theta = LinearizedRelative(2, 2).double().theta.flatten()
    expected = torch.tensor([1.0, 1e4 ** (-2 / 4), 1e4 ** (-4 / 4), 1e4 ** (-6 / 4)]).double()
    torch.testing.assert_close(theta, expected, rtol=1e-6, atol=0)


def test_an_offset_goes_on_where_a_prefix_ended():
    position, q = LinearizedRelative(2, 4).double(), draw(1, 2, 9, 4)
    torch.testing.assert_close(position.turn(q)[:, :, 5:], position.turn(q[:, :, 5:], 5), rtol=0, atol=1e-12)


def test_query_heads_turn_with_the_key_head_that_serves_them():
    position, k = LinearizedRelative(2, 4).double(), draw(1, 2, 5, 4)
    q = k.repeat_interleave(3, dim=1)
    torch.testing.assert_close(position.turn(q), position.turn(k).repeat_interleave(3, dim=1))


def test_rates_learn():
    position = LinearizedRelative(1, 2).double()
    (gradient,) = torch.autograd.grad(position.turn(draw(1, 1, 4, 2)).sum(), position.theta)
    assert gradient.abs().min() > 0


def test_the_norm_brings_every_vector_to_a_mean_square_of_one():
    x = 100 * draw(3, 5, 8)
    torch.testing.assert_close(
        SimpleRMSNorm()(x).square().mean(-1), torch.ones(3, 5).double(), rtol=1e-8, atol=0
    )
    torch.testing.assert_close(SimpleRMSNorm()(7 * x), SimpleRMSNorm()(x), rtol=1e-8, atol=1e-8)


def test_the_norm_of_nothing_is_nothing_with_finite_gradients():
    x = torch.zeros(2, 8, requires_grad=True)
    y = SimpleRMSNorm()(x)
    assert y.eq(0).all()
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_the_norm_sums_squares_in_single_precision():
    x = torch.full((1, 4), 300.0, dtype=torch.float16)
    torch.testing.assert_close(SimpleRMSNorm()(x), torch.ones(1, 4, dtype=torch.float16))


@pytest.mark.parametrize("epsilon", [0.0, -1.0])
def test_bad_epsilon(epsilon):
    with pytest.raises(ValueError, match="epsilon is"):
        SimpleRMSNorm(epsilon=epsilon)


def test_bad_base():
    with pytest.raises(ValueError, match="base is 0"):
        LinearizedRelative(1, 1, base=0)
