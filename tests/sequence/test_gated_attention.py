"""Gated attention."""

import pytest
import torch

from regardant.core.record import Record
from regardant.sequence.gated_attention import GatedAttention
from regardant.sequence.softmax import Softmax

LENGTHS = [1, 2, 17, 64, 257]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return GatedAttention(32, 4, **config).double()


def inputs(n, batch=2, seed=1, dim=32):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    "config",
    [{}, {"causal": True, "kv_heads": 2, "bias": True}, {"head_dim": 5, "initial": 0.25, "compensate": True}],
)
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
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_stepping_equals_forward(n, kv_heads):
    mixer, x = layer(causal=True, kv_heads=kv_heads), inputs(n)
    with torch.no_grad():
        state, outputs = mixer.start(2), []
        for t in range(n):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), mixer(x), rtol=0, atol=1e-9)


def test_a_closed_gate_lets_a_head_do_nothing_and_an_open_one_everything():
    mixer, x = layer(), inputs(20)
    with torch.no_grad():
        mixer.gate_weight.zero_()
        mixer.gate_bias.copy_(torch.tensor([-200.0, 200.0, 200.0, -200.0]))
        q, k, v = mixer.project(x)
        heads = mixer.attend_reference(q, k, v, x=x, pattern=None)
        expected = (
            heads[:, 1] @ mixer.to_out.weight[:, 8:16].T + heads[:, 2] @ mixer.to_out.weight[:, 16:24].T
        )
        torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


def test_a_gate_looks_at_its_own_slice_of_the_input_and_at_its_own_token():
    mixer, x = layer(), inputs(6)
    changed = x.clone()
    changed[:, 2, 8:16] += 1.0
    moved = (mixer.gates(changed) - mixer.gates(x)).abs() > 1e-12
    assert moved.nonzero().tolist() == [[0, 2, 1], [1, 2, 1]]


@pytest.mark.parametrize("initial", [0.25, 0.5, 0.9])
def test_gates_start_at_the_probability_asked_for(initial):
    mixer = layer(initial=initial)
    torch.testing.assert_close(
        mixer.gates(torch.zeros(1, 1, 32).double()), torch.full((1, 1, 4), initial).double()
    )
    assert mixer.gates(inputs(500)).mean().sub(initial).abs() < 0.05
    extra = sum(p.numel() for p in mixer.parameters()) - sum(p.numel() for p in Softmax(32, 4).parameters())
    assert extra == 4 * (8 + 1)


@pytest.mark.parametrize("initial", [0.25, 0.9])
def test_a_pretrained_layer_starts_as_it_was_and_its_gates_learn(initial):
    torch.manual_seed(0)
    dense, x = Softmax(32, 4, causal=True, kv_heads=2, bias=True).double(), inputs(40)
    gated = GatedAttention.from_dense(dense, initial=initial)
    torch.testing.assert_close(gated(x), dense(x), rtol=0, atol=1e-12)
    gradient = torch.autograd.grad(gated(x).square().sum(), gated.gate_weight)[0]
    assert (gradient.abs().amax(-1) > 0).all()


def test_the_record_sees_the_gates():
    mixer, x, record = layer(), inputs(12), Record()
    mixer(x, record=record)
    torch.testing.assert_close(record.seen["gates"], [mixer.gates(x)])


def test_padding_never_leaks_and_the_future_does_not_move_the_past():
    mixer, x, changed = layer(causal=True), inputs(50), inputs(50)
    padding = torch.ones(2, 50, dtype=torch.bool)
    padding[0, 5:9] = padding[1] = False
    changed[~padding] = 9.0
    a, b = mixer(x, padding=padding), mixer(changed, padding=padding)
    torch.testing.assert_close(a[padding], b[padding], rtol=0, atol=1e-12)
    assert a.isfinite().all()
    later = x.clone()
    later[:, 30:] *= -2
    torch.testing.assert_close(mixer(later)[:, :30], mixer(x)[:, :30], rtol=0, atol=1e-12)


def test_cross_attention_gates_by_the_query():
    mixer = layer(context_dim=24, causal=True)
    x, context = inputs(7), inputs(12, dim=24)
    torch.testing.assert_close(mixer(x, context), mixer.reference(x, context), rtol=0, atol=1e-9)
    y, _ = mixer.step(x[:, 0], mixer.start(2, context=context))
    torch.testing.assert_close(y, mixer(x, context)[:, 0], rtol=0, atol=1e-9)


def test_bfloat16_stays_near():
    mixer = layer(causal=True).bfloat16()
    exact = layer(causal=True).double()
    exact.load_state_dict({name: value.double() for name, value in mixer.state_dict().items()})
    x = inputs(257).bfloat16()
    wanted = exact(x.double())
    assert (mixer(x).double() - wanted).norm() / wanted.norm() < 0.03


def test_bad_configuration_says_what_would_be_right():
    with pytest.raises(ValueError, match=r"initial is 1\.0"):
        layer(initial=1.0)
    with pytest.raises(ValueError, match="dim=10 does not divide"):
        GatedAttention(10, 4, head_dim=4)
