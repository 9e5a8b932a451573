"""The selective state space model, the quasi-LSTM and RG-LRU: their equations, and what they share."""

import pytest
import torch
import torch.nn.functional as F

from regardant.core.transition import ForgetGate, GatedDecay, HeadwiseLinear, SelectiveStep, make_transition
from regardant.sequence.quasi_lstm import QuasiLSTM
from regardant.sequence.rg_lru import RGLRU
from regardant.sequence.selective_state_space import SelectiveStateSpace

SYSTEMS = [SelectiveStateSpace, QuasiLSTM, RGLRU]
TRANSITIONS = ["s6", "lstm", "rg-lru"]


def layer(kind, seed=0, heads=1, **config):
    torch.manual_seed(seed)
    return kind(8, heads, **config).double()


def draw(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(part, u):
    """W u + b of one head."""
    return u @ part.weight[0].T + part.bias


def test_s6_is_its_equations_token_by_token():
    mixer, x = layer(SelectiveStateSpace, states=3), draw(2, 9, 8)
    with torch.no_grad():
        u = x @ mixer.to_u.weight.T
        step = F.softplus(linear(mixer.step_size.gate, u))
        rate = mixer.step_size.log_rate.exp()
        write, read = u @ mixer.to_write.weight.T, u @ mixer.to_read.weight.T
        state, found = torch.zeros(2, 3, 8, dtype=torch.float64), []
        for t in range(9):
            kept = torch.exp(-step[:, t, None] * rate)
            state = kept * state + write[:, t, :, None] * (step[:, t] * u[:, t])[:, None]
            found.append((read[:, t, :, None] * state).sum(1) + mixer.skip * u[:, t])
        expected = torch.stack(found, 1) @ mixer.to_out.weight.T
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-9)


def test_the_quasi_lstm_is_its_equations_token_by_token():
    mixer, x = layer(QuasiLSTM), draw(2, 9, 8)
    with torch.no_grad():
        u = x @ mixer.to_u.weight.T
        gates = mixer.transition.gate, mixer.write_gate, mixer.read_gate
        f, g, o = (torch.sigmoid(linear(gate, u)) for gate in gates)
        new = torch.tanh(linear(mixer.to_candidate, u))
        state, found = torch.zeros(2, 8, dtype=torch.float64), []
        for t in range(9):
            state = f[:, t] * state + g[:, t] * new[:, t]
            found.append(o[:, t] * torch.tanh(state))
        expected = torch.stack(found, 1) @ mixer.to_out.weight.T
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-9)


def test_rg_lru_is_its_equations_token_by_token():
    mixer, x = layer(RGLRU), draw(2, 9, 8)
    with torch.no_grad():
        u = x @ mixer.to_u.weight.T
        r = torch.sigmoid(linear(mixer.transition.gate, u))
        a = torch.sigmoid(mixer.transition.kept) ** (8 * r)
        i = torch.sigmoid(linear(mixer.write_gate, u))
        state, found = torch.zeros(2, 8, dtype=torch.float64), []
        for t in range(9):
            state = a[:, t] * state + (1 - a[:, t] ** 2).sqrt() * i[:, t] * u[:, t]
            found.append(state)
        expected = torch.stack(found, 1) @ mixer.to_out.weight.T
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("heads", [1, 2])
def test_scan_recurrence_and_written_out_matrix_are_one(kind, transition, heads):
    mixer, x = layer(kind, heads=heads, transition=transition), draw(2, 33, 8)
    with torch.no_grad():
        y, state = mixer(x), mixer.start(2)
        torch.testing.assert_close(mixer.reference(x), y, rtol=0, atol=1e-9)
        torch.testing.assert_close(mixer.mix(mixer.mixing_matrix(x), x), y, rtol=0, atol=1e-9)
        for t in range(33):
            stepped, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(stepped, y[:, t], rtol=0, atol=1e-9)
        _, state = mixer.prefill(x[:, :20])
        stepped, _ = mixer.step(x[:, 20], state)
        torch.testing.assert_close(stepped, y[:, 20], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_gradients_equal_those_of_the_recurrence(kind, transition):
    mixer, x = layer(kind, transition=transition), draw(2, 20, 8).requires_grad_()
    wanted = [x, *mixer.parameters()]
    weight = draw(2, 20, 8, seed=5)
    ours, plain = (torch.autograd.grad((call(x) * weight).sum(), wanted) for call in (mixer, mixer.reference))
    for one, other in zip(ours, plain):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_s6_with_a_rate_of_one_is_a_forget_gate_with_its_sign_turned():
    torch.manual_seed(0)
    step, gate, u = SelectiveStep(8, 2).double(), ForgetGate(8, 2).double(), draw(2, 9, 8)
    with torch.no_grad():
        gate.gate.weight.copy_(-step.gate.weight)
        gate.gate.bias.copy_(-step.gate.bias)
    torch.testing.assert_close(step(u), gate(u), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.exp(step(u)), torch.sigmoid(-step.gate(u)), rtol=0, atol=1e-12)


def test_a_quasi_lstm_with_that_gate_is_the_one_with_s6s_transition():
    one, other, x = layer(QuasiLSTM), layer(QuasiLSTM, transition="s6"), draw(2, 17, 8)
    with torch.no_grad():
        weights = dict(one.state_dict())
        for name in ("transition.gate.weight", "transition.gate.bias"):
            weights[name] = -weights[name]
        other.load_state_dict(weights | {"transition.log_rate": torch.zeros(8).double()})
    torch.testing.assert_close(one(x), other(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", TRANSITIONS)
def test_transitions_keep_between_nothing_and_all_at_any_input(kind):
    torch.manual_seed(0)
    transition, u = make_transition(kind, 8, 1), 1000 * draw(2, 50, 8).float()
    u.requires_grad_()
    found = transition(u)
    assert found.max() <= 0
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), u)[0].isfinite().all()


def test_where_they_start():
    torch.manual_seed(0)
    nothing = torch.zeros(1, 1, 512)
    assert torch.sigmoid(torch.tensor(1.0)) == pytest.approx(ForgetGate(512, 1)(nothing).exp().mean().item())
    steps = SelectiveStep(512, 1).step_size(nothing)
    assert (steps.min().item(), steps.max().item()) == pytest.approx((0.001, 0.1), rel=0.1)
    kept = torch.sigmoid(GatedDecay(512, 1).kept) ** 8
    assert (kept.min().item(), kept.max().item()) == pytest.approx((0.9, 0.999), rel=0.01)


def test_heads_see_their_own_channels_alone():
    torch.manual_seed(0)
    part, u = HeadwiseLinear(8, 2).double(), draw(1, 3, 8)
    whole = torch.block_diag(*part.weight)
    torch.testing.assert_close(part(u), u @ whole.T + part.bias, rtol=0, atol=1e-12)


def test_the_root_has_a_slope_where_nothing_is_forgotten():
    mixer, x = layer(RGLRU), draw(1, 5, 8).requires_grad_()
    with torch.no_grad():
        mixer.transition.kept.fill_(60.0)
    assert torch.autograd.grad(mixer(x).sum(), x)[0].isfinite().all()


def test_pitfall_states_count_as_they_are():
    """At equal width: sixteen states a channel, and one."""
    sizes = [layer(kind).start(1).matrix.numel() for kind in SYSTEMS]
    assert sizes == [16 * 8, 8, 8]


@pytest.mark.parametrize("kind", SYSTEMS)
def test_padding_leaves_the_state_as_it_is(kind):
    mixer, x = layer(kind), draw(1, 12, 8)
    real = torch.tensor([[True, False, True, True, False, False, True, True, True, False, True, False]])
    y = mixer(x, padding=real)
    torch.testing.assert_close(y[real], mixer(x[real][None])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize(
    "config, words",
    [
        ({"heads": 3}, "heads is 3, but it must divide dim=8"),
        ({"causal": False}, "causal=False"),
        ({"transition": "gru"}, "no transition is called 'gru'"),
    ],
)
def test_bad_configuration_says_what_would_be_right(kind, config, words):
    with pytest.raises(ValueError, match=words):
        layer(kind, **config)
