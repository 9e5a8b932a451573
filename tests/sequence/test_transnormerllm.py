"""TransNormerLLM's token mixer."""

from math import exp

import pytest
import torch
import torch.nn.functional as F

from regardant.core.decayed_heads import decays
from regardant.core.linearized_relative import LinearizedRelative
from regardant.sequence.transnormerllm import TransNormer

LENGTHS = [1, 2, 63, 64, 65, 130]
CONFIGS = [{}, {"layer": 1, "layers": 3}, {"decay": "alibi", "kv_heads": 2, "bias": True}, {"decay": "none"}]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return TransNormer(32, 4, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decoded(mixer, x):
    state, outputs = mixer.start(x.shape[0]), []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("place", [0, 1])
def test_pitfall_only_queries_and_keys_are_activated_and_nothing_is_divided(place):
    """The equation token by token: v and u as they are projected, the norm in place of a denominator."""
    mixer, x = layer(layer=place, layers=2), inputs(8)
    with torch.no_grad():
        q, k = F.silu(x @ mixer.to_q.weight.T), F.silu(x @ mixer.to_k.weight.T)
        v, u = x @ mixer.to_v.weight.T, x @ mixer.to_gate.weight.T
        out = torch.zeros_like(x)
        for h in range(4):
            kept, own = exp(-8 * h / 4 * (1 - place / 2)), slice(8 * h, 8 * h + 8)
            for t in range(8):
                for s in range(t + 1):
                    meet = q[:, t, own] * k[:, s, own]
                    if place == 0:
                        meet = meet * torch.cos(mixer.position.theta[h, 0] * (t - s))
                    out[:, t, own] += kept ** (t - s) * meet.sum(-1, keepdim=True) * v[:, s, own]
        normed = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        expected = (normed * u) @ mixer.to_out.weight.T
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("n", LENGTHS)
def test_parallel_chunked_and_recurrent_are_one(n, config):
    mixer, x = layer(**config), inputs(n)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), mixer.reference(x), rtol=0, atol=1e-9)
        torch.testing.assert_close(mixer(x), decoded(mixer, x)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_equal_those_of_the_parallel_form(config):
    mixer, x = layer(**config), inputs(70).requires_grad_()
    wanted = [x, *mixer.parameters()]
    weight = torch.randn(2, 70, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours = torch.autograd.grad((mixer(x) * weight).sum(), wanted)
    plain = torch.autograd.grad((mixer.reference(x) * weight).sum(), wanted)
    for one, other in zip(ours, plain):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_decays_are_the_papers():
    assert decays("linear", 4, layer=1, layers=2) == pytest.approx([1, exp(-1), exp(-2), exp(-3)])
    assert decays("linear", 4, layer=0, layers=2)[0] == 1.0
    assert decays("alibi", 8, layer=2, layers=5) == pytest.approx(
        [exp(-(2.0 ** -(h + 1)) * (0.5 + 1e-5)) for h in range(8)]
    )


def test_pitfall_the_unsafe_recurrence_overflows_and_ours_does_not():
    rates = torch.tensor([7.0, 0.5])
    powers = torch.exp(rates[:, None] * torch.arange(200))
    assert powers.isinf().int().argmax(dim=1).tolist() == [13, 178]
    torch.manual_seed(0)
    mixer, x = TransNormer(32, 4, layers=1), torch.randn(1, 400, 32)
    assert min(decays("linear", 4)) == pytest.approx(exp(-6))
    with torch.no_grad():
        stepped, _ = decoded(mixer, x)
        torch.testing.assert_close(stepped, mixer.reference(x), rtol=0, atol=1e-4)


def test_pitfall_turning_by_position_doubles_the_state():
    first, later = layer(), layer(layer=1, layers=2)
    assert isinstance(first.position, LinearizedRelative)
    assert not isinstance(later.position, LinearizedRelative)
    assert first.start(1).inner.matrix.shape == (1, 4, 16, 8)
    assert later.start(1).inner.matrix.shape == (1, 4, 8, 8)
    for mixer in (first, later):
        assert mixer.prefill(inputs(100))[1].nbytes == mixer.start(2).nbytes


def test_pitfall_a_network_of_one_layer_divides_by_no_zero():
    assert layer(decay="alibi", layers=1).rule.log_decay.isfinite().all()
    with pytest.raises(ValueError, match="layer is 1, but layers=1 are counted from 0 to 0"):
        layer(layer=1)


def test_padding_sends_nothing_and_a_row_of_it_stays_finite():
    mixer, x, changed = layer(), inputs(40), inputs(40)
    padding = torch.rand(2, 40, generator=torch.Generator().manual_seed(0)) > 0.4
    padding[1] = False
    changed[~padding] = 30.0
    a, b = mixer(x, padding=padding), mixer(changed, padding=padding)
    torch.testing.assert_close(a[padding], b[padding], rtol=0, atol=1e-12)
    assert a.isfinite().all()
