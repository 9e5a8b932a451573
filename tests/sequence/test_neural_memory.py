"""The neural memory as a layer: LMM."""

import pytest
import torch

from regardant.sequence.neural_memory import NeuralMemory


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return NeuralMemory(16, 2, **({"chunk": 4} | config)).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"depth": 1, "momentum": False},
        {"kernel": 1, "clip": None},
        {"chunk": 1},
        {"depth": 1, "chunk": 1, "clip": None},
    ],
)
def test_forward_is_the_equation_and_so_are_its_gradients(config):
    memory, x = layer(**config), inputs(14).requires_grad_()
    parameters = [x, *memory.parameters()]
    fast, plain = memory(x), memory.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), parameters)
    theirs = torch.autograd.grad((plain * weight).sum(), parameters)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_a_linear_memory_with_chunks_of_one_is_the_recurrence_written_out():
    """No convolution, no momentum, no clip: W ← (1 - α) W - 2θ k (k W - v), the gated delta rule."""
    memory, x = layer(depth=1, chunk=1, kernel=1, momentum=False, clip=None), inputs(9)
    inner = memory.memory
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    q, k, v = (
        torch.nn.functional.silu(part).unflatten(-1, (2, 8))
        for part in (inner.to_qkv(normed) * inner.taps[0]).chunk(3, dim=-1)
    )
    q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    rate, forget, _ = inner.to_gates(normed).sigmoid().unflatten(-1, (3, 2)).unbind(2)
    matrix, read = inner.first_weights[0].expand(2, 2, 8, 8), []
    for t in range(9):
        row = k[:, t, :, None]
        slope = 2 * row.mT @ (row @ matrix - v[:, t, :, None])
        matrix = (1 - forget[:, t, :, None, None]) * matrix - 0.1 * rate[:, t, :, None, None] * slope
        read.append((q[:, t, :, None] @ matrix)[:, :, 0])
    heads = torch.stack(read, dim=1)
    heads = heads / (heads.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    y = inner.to_out(heads.flatten(2) * torch.nn.functional.silu(inner.to_gate(normed)))
    torch.testing.assert_close(memory(x), y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cuts", [(3, 14), (4, 8), (1, 2)])
def test_segments_with_a_carried_state_are_the_whole_sequence(cuts):
    memory, x = layer(), inputs(14)
    whole, state = memory(x), memory.start(2)
    parts = []
    for segment in x.tensor_split(cuts, dim=1):
        if segment.shape[1]:
            y, state = memory.extend(segment, state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    assert state.length == 14


def test_stepping_equals_forward_and_old_states_stay_valid():
    memory, x = layer(), inputs(11)
    with torch.no_grad():
        y, state, states = memory(x), memory.start(2), []
        for t in range(11):
            states.append(state)
            out, state = memory.step(x[:, t], state)
            torch.testing.assert_close(out, y[:, t], rtol=0, atol=1e-12)
        out, _ = memory.step(x[:, 5], states[5])
        torch.testing.assert_close(out, y[:, 5], rtol=0, atol=1e-12)


def test_the_state_is_as_large_behind_a_thousand_tokens_as_behind_ten():
    memory = layer()
    with torch.no_grad():
        sizes = [memory.prefill(inputs(n))[1].nbytes for n in (10, 1000)]
    assert sizes[0] == sizes[1]


def test_pitfall_each_sample_has_weights_of_its_own():
    memory, x = layer(), inputs(12)
    _, state = memory.prefill(x)
    first, second = state.inner.weights[0]
    assert (first - second).abs().max() > 1e-3
    other = torch.cat([x[:1], 3 * inputs(12, seed=5)[:1]])
    torch.testing.assert_close(memory(other)[0], memory(x)[0], rtol=0, atol=1e-12)


def test_pitfall_the_outer_gradient_flows_through_the_inner_updates():
    """The last output depends on the first token's value only through a write."""
    memory, x = layer(kernel=1), inputs(10).requires_grad_()
    slope = torch.autograd.grad(memory(x)[:, -1].sum(), [x, memory.memory.to_gates.weight])
    assert slope[0][:, 0].abs().max() > 1e-6
    assert slope[1].abs().max() > 1e-6


def test_pitfall_what_is_read_holds_no_later_write_of_its_chunk():
    memory, x = layer(chunk=16), inputs(16)
    changed = x.clone()
    changed[:, 9:] = 5 * inputs(7, seed=3)
    torch.testing.assert_close(memory(x)[:, :9], memory(changed)[:, :9], rtol=0, atol=1e-12)
    assert (memory(x)[:, 9:] - memory(changed)[:, 9:]).abs().max() > 1e-2


def test_pitfall_a_large_rate_stays_bounded_where_a_token_repeats_itself():
    x = inputs(1).expand(2, 200, 16)
    bounded, free = layer(rate=1.0, chunk=16), layer(rate=1.0, chunk=16, clip=None)
    with torch.no_grad():
        weights = bounded.prefill(x)[1].inner.weights
        assert max(weight.abs().max() for weight in weights) < 200
        overshot = free.prefill(x)[1].inner.weights
    assert not all(weight.abs().max() < 1e6 for weight in overshot)


def test_pitfall_keys_and_queries_have_length_one():
    memory, x = layer(depth=1, chunk=1, momentum=False, forgetting=False, clip=None), inputs(6)
    quiet, loud = memory.prefill(x)[1], memory.prefill(100 * x)[1]
    torch.testing.assert_close(quiet.inner.weights, loud.inner.weights, rtol=1e-4, atol=1e-4)


def test_padding_writes_nothing():
    memory, x = layer(kernel=1), inputs(8)
    real = torch.tensor([[True] * 8, [False, False, True, True, False, True, True, True]])
    _, padded = memory.extend(x, memory.start(2), real)
    _, alone = layer(kernel=1, chunk=4).prefill(x[1:, [0]])
    none = torch.zeros(1, 3, dtype=torch.bool)
    _, still = memory.extend(x[:1, :3], memory.start(1), none)
    torch.testing.assert_close(still.inner.weights, memory.start(1).inner.weights, rtol=0, atol=0)
    assert (padded.inner.weights[0][1] - alone.inner.weights[0][0]).abs().max() > 1e-4


def test_a_state_from_another_configuration_is_refused():
    memory, x = layer(), inputs(5)
    for other in (layer(depth=1), layer(expansion=3), layer(momentum=False), layer(kernel=2)):
        with pytest.raises(ValueError, match="state is a NeuralMemoryState of another configuration"):
            memory.extend(x, other.start(2))
    with pytest.raises(ValueError, match="another configuration or batch"):
        memory.step(x[:, 0], memory.start(3))


@pytest.mark.parametrize(
    "config", [{"depth": 0}, {"chunk": 0}, {"kernel": 0}, {"rate": 0.0}, {"clip": 0.0}, {"expansion": 0}]
)
def test_bad_configuration_says_what_would_be_right(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        layer(**config)
    with pytest.raises(ValueError, match="causal=False"):
        layer(causal=False)


def test_it_takes_no_context():
    with pytest.raises(ValueError, match="context is given"):
        layer()(inputs(3), inputs(3))
