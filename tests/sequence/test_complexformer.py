"""ComplexFormer: polar scores, rotary positions as the start, and the dossier's pitfalls."""

import math

import pytest
import torch

from regardant.core.position import Alibi
from regardant.sequence.complexformer import Complexformer, cartesian, polar
from regardant.sequence.softmax import Softmax


def layer(seed=0, dim=24, heads=3, spread=0.4, **own):
    torch.manual_seed(seed)
    made = Complexformer(dim, heads, **({"causal": True} | own)).double()
    with torch.no_grad():
        made.gain.add_(spread * torch.randn_like(made.gain))
        made.phase_bias.add_(spread * torch.randn_like(made.gain))
    return made


def inputs(n, dim=24, seed=1, batch=2):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_one_score_by_hand():
    """Two tokens, one head of one complex number."""
    made = layer(dim=2, heads=1, head_dim=2)
    x = inputs(2, dim=2, batch=1)
    (a, b), (c, d) = (made.to_q(x)[0, 1].tolist(), made.to_k(x)[0, 0].tolist())
    turn = float(made.gain) * (math.atan2(b, a) - math.atan2(d, c)) + float(made.phase_bias) + 1.0
    expected = math.hypot(a, b) * math.hypot(c, d) * math.cos(turn)
    q, k, _ = made.project(x)
    assert float(q[0, 0, 1] @ k[0, 0, 0]) == pytest.approx(expected, abs=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_factorised_equals_the_five_axes(causal):
    made, x = layer(causal=causal), inputs(33)
    torch.testing.assert_close(made(x), made.reference(x), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_it_starts_as_rotary_attention(causal):
    torch.manual_seed(0)
    dense, x = Softmax(32, 4, causal=causal, position="rotary").double(), inputs(40, dim=32)
    ours = Complexformer.from_dense(dense)
    torch.testing.assert_close(ours(x), dense(x), rtol=0, atol=1e-12)
    added = sum(p.numel() for p in ours.parameters()) - sum(p.numel() for p in dense.parameters())
    assert added == 32


def test_only_a_rotary_layer_can_be_grown_from():
    with pytest.raises(ValueError, match="position is Alibi"):
        Complexformer.from_dense(Softmax(32, 4, position=Alibi(4)))
    with pytest.raises(ValueError, match="turns positions in by itself"):
        Complexformer(32, 4, position="rotary")
    with pytest.raises(ValueError, match="head_dim is 3"):
        Complexformer(6, 2)
    with pytest.raises(ValueError, match="initial is 'rope'"):
        Complexformer(8, 2, initial="rope")


@torch.no_grad()
def test_pitfall_a_phase_that_crosses_pi_jumps_only_where_the_gain_is_no_whole_number():
    just = torch.tensor([[-1.0, 1e-9], [-1.0, -1e-9]], dtype=torch.float64)
    length, phase = polar(just)
    for gain, apart in ((1.0, 0.0), (2.0, 0.0), (0.5, 2.0)):
        above, below = cartesian(length, gain * phase)
        assert (above - below).norm() == pytest.approx(apart, abs=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-200, 1e-150, 1e-30, 1.0])
def test_pitfall_gradients_stay_bounded_near_zero(size):
    x = (size * inputs(1, dim=8)).requires_grad_()
    length, phase = polar(x)
    turned = cartesian(length, 1.7 * phase + 0.3)
    turned.sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() < 10
    small = (size * inputs(1, dim=8)).float().requires_grad_()
    length, phase = polar(small)
    cartesian(length, 1.7 * phase + 0.3).sum().backward()
    assert small.grad.isfinite().all()


def test_a_padded_row_of_zeros_trains():
    made, x = layer(), inputs(5)
    x[:, 3:] = 0
    made(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@torch.no_grad()
def test_pitfall_positions_far_out_are_turned_in_full_precision():
    """At position 10,000 the first channel's angle is a whole number of radians that bfloat16 has not."""
    made = layer(spread=0.0).bfloat16()
    x = inputs(1).bfloat16()
    near, far = (made.project(x, offset=at)[0].float() for at in (0, 10_001))
    exact = made.double().project(x.double(), offset=10_001)[0]
    assert (far - exact).abs().max() < 0.02 * near.abs().max()


@torch.no_grad()
def test_pitfall_a_query_behind_a_cache_stands_behind_it():
    made, x = layer(), inputs(20)
    whole = made(x)
    y, state = made.prefill(x[:, :11])
    for t in range(11, 20):
        y, state = made.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)


@torch.no_grad()
def test_only_distances_count():
    made, x = layer(), inputs(9)
    q, k, _ = made.project(x)
    later_q, later_k, _ = made.project(x, offset=100)
    torch.testing.assert_close(q @ k.mT, later_q @ later_k.mT, rtol=0, atol=1e-9)
