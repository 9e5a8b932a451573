"""Lightning Attention-2 and the layer around it."""

from math import exp

import pytest
import torch

from regardant.core.decayed_rule import DecayedLinearRule
from regardant.core.pattern import Causal, Padding
from regardant.core.rule import HeadShape
from regardant.sequence.lightning_attention_2 import LightningAttention2

LENGTHS = [1, 2, 17, 64, 257]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return LightningAttention2(32, 4, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decoded(mixer, x):
    state, outputs = mixer.start(x.shape[0]), []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def test_the_layer_is_the_equation_written_token_by_token():
    mixer, x = layer(), inputs(9)
    with torch.no_grad():
        q, k, v = (torch.nn.functional.silu(x @ w.weight.T) for w in (mixer.to_q, mixer.to_k, mixer.to_v))
        out = torch.zeros_like(x)
        for h in range(4):
            decay, own = exp(-(2 ** (-2 * (h + 1))) * (1 + 1e-5)), slice(8 * h, 8 * h + 8)
            for t in range(9):
                for s in range(t + 1):
                    weight = decay ** (t - s) * (q[:, t, own] * k[:, s, own]).sum(-1, keepdim=True)
                    out[:, t, own] += weight * v[:, s, own]
        gate = torch.sigmoid(x @ mixer.to_gate[0].weight.T @ mixer.to_gate[1].weight.T)
        normed = torch.nn.functional.layer_norm(out, (32,))
        expected = (normed * gate) @ mixer.to_out.weight.T
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("config", [{}, {"kv_heads": 2, "position": "rotary", "bias": True}])
def test_forward_and_its_gradients_equal_the_reference(n, config):
    mixer, x = layer(**config), inputs(n).requires_grad_()
    parameters = [x, *mixer.parameters()]
    fast, plain = mixer(x), mixer.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), parameters),
        torch.autograd.grad((plain * weight).sum(), parameters),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_stepping_equals_forward(n, kv_heads):
    mixer, x = layer(kv_heads=kv_heads), inputs(n)
    with torch.no_grad():
        torch.testing.assert_close(decoded(mixer, x)[0], mixer(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [5, 64, 100])
def test_pitfall_the_state_behind_a_ragged_last_block_goes_on_as_steps_would(n):
    mixer, x = layer(kv_heads=2), inputs(n + 10)
    with torch.no_grad():
        y, state = mixer.prefill(x[:, :n])
        stepped = decoded(mixer, x[:, :n])[1]
        torch.testing.assert_close(state.inner.matrix, stepped.inner.matrix, rtol=0, atol=1e-9)
        rest = []
        for t in range(n, n + 10):
            out, state = mixer.step(x[:, t], state)
            rest.append(out)
        torch.testing.assert_close(torch.cat([y, torch.stack(rest, 1)], 1), mixer(x), rtol=0, atol=1e-9)


def test_pitfall_the_first_token_of_a_block_has_aged_by_one_not_by_none():
    rule = DecayedLinearRule([0.5]).double()
    n = 130
    q = k = torch.ones(1, 1, n, 1, dtype=torch.float64)
    v = torch.zeros(1, 1, n, 1, dtype=torch.float64)
    v[..., 63, :] = v[..., 127, :] = 1.0
    out = rule(q, k, v, pattern=Causal())[0, 0, :, 0]
    torch.testing.assert_close(out[63:66], torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64))
    torch.testing.assert_close(out[127:130], torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64))


def test_pitfall_a_decay_that_underflows_gives_neither_infinity_nor_nan():
    rule = DecayedLinearRule([1e-300, 1.0]).double()
    q, k, v = torch.randn(3, 1, 2, 200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q.requires_grad_()
    out = rule(q, k, v, pattern=Causal())
    torch.testing.assert_close(out, rule.reference(q, k, v, pattern=Causal()), rtol=0, atol=1e-9)
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()
    at_once = (q[:, 0] * k[:, 0]).sum(-1, keepdim=True) * v[:, 0]
    torch.testing.assert_close(out[:, 0], at_once, rtol=0, atol=1e-9)


def test_pitfall_the_norm_holds_outputs_that_would_grow_with_the_length():
    mixer = layer(decay=[1.0] * 4)
    x = inputs(1, seed=3).expand(2, 4000, 32)
    y = mixer(x)
    torch.testing.assert_close(y[:, 3999], y[:, 100], rtol=0, atol=1e-3)


def test_the_future_does_not_move_the_past_and_samples_do_not_meet():
    mixer, x, changed = layer(), inputs(100), inputs(100)
    changed[:, 70:] *= -3
    torch.testing.assert_close(mixer(x)[:, :70], mixer(changed)[:, :70], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixer(x)[1:], mixer(x[1:]), rtol=0, atol=1e-12)


def test_padding_sends_nothing_and_a_row_of_padding_stays_finite():
    mixer, x, changed = layer(), inputs(70), inputs(70)
    padding = torch.rand(2, 70, generator=torch.Generator().manual_seed(0)) > 0.4
    padding[1] = False
    changed[~padding] = 30.0
    a, b = mixer(x, padding=padding), mixer(changed, padding=padding)
    torch.testing.assert_close(a[padding], b[padding], rtol=0, atol=1e-12)
    assert a.isfinite().all()
    q, k, v = mixer.project(x)
    pattern = Causal() & Padding(padding)
    torch.testing.assert_close(
        mixer.rule(q, k, v, pattern=pattern),
        mixer.rule.reference(q, k, v, pattern=pattern),
        rtol=0,
        atol=1e-9,
    )
    assert mixer.rule(q, k, v, pattern=pattern)[1].abs().max() == 0


def test_the_state_does_not_grow():
    mixer, x = layer(), inputs(300)
    with torch.no_grad():
        assert mixer.prefill(x[:, :10])[1].nbytes == mixer.prefill(x)[1].nbytes


def test_the_state_is_float32_in_half_precision():
    shape = HeadShape(1, 2, 2, 4, 4, torch.device("cpu"), torch.bfloat16)
    assert DecayedLinearRule([0.9, 0.8]).start(shape).matrix.dtype == torch.float32
    mixer = layer().bfloat16()
    exact = layer().double()
    exact.load_state_dict({name: value.double() for name, value in mixer.state_dict().items()})
    x = inputs(257).bfloat16()
    wanted = exact(x.double())
    assert (mixer(x).double() - wanted).norm() / wanted.norm() < 0.03


def test_deeper_layers_forget_more_slowly_and_the_last_hardly():
    first, last = layer().rule.log_decay, layer(depth=1.0).rule.log_decay
    torch.testing.assert_close(
        first, -torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]).double() * (1 + 1e-5)
    )
    torch.testing.assert_close(last, first / (1 + 1e-5) * 1e-5)


@pytest.mark.parametrize(
    "config, word",
    [
        ({"causal": False}, "causal=False"),
        ({"decay": [0.5]}, "one for each of heads=4"),
        ({"decay": [0.5, 0.5, 0.5, 1.5]}, "decay holds 1.5"),
        ({"depth": 2.0}, "depth is 2.0"),
        ({"position": "alibi"}, "position is Alibi"),
        ({"context_dim": 8}, "context_dim=8"),
    ],
)
def test_what_it_cannot_do_it_says(config, word):
    with pytest.raises(ValueError, match=word):
        layer(**config)
