"""A memory that learns while it reads: chunks at once against the equations token by token."""

from itertools import pairwise

import pytest
import torch

from regardant.core.surprise import Gates, MemoryState, Shares, between, memorise, memorise_plainly, recall


def drawn(n, *, depth=2, momentum=True, width=5, heads=3, batch=2, seed=0):
    """Queries, keys of length one, values, gates and first weights, all in need of a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (random(batch, heads, n, width) for _ in range(3))
    k = k / k.norm(dim=-1, keepdim=True)
    gates = [0.1 * random(batch, heads, n).abs(), -0.2 * random(batch, heads, n).abs()]
    gates.append(-random(batch, heads, n).abs() if momentum else None)
    sizes = [width, *[2 * width] * (depth - 1), width]
    weights = [random(heads, i, o) / i**0.5 for i, o in pairwise(sizes)]
    for each in (q, k, v, *gates, *weights):
        if each is not None:
            each.requires_grad_()
    return q, k, v, Gates(*gates), weights


def some_tokens(inputs, start, end):
    q, k, v, gates = inputs
    cut = (None if x is None else x[..., start:end] for x in (gates.rate, gates.log_keep, gates.log_momentum))
    return *(x[:, :, start:end] for x in (q, k, v)), Gates(*cut)


@pytest.mark.parametrize("n, chunk", [(1, 4), (7, 4), (16, 4), (9, 16), (11, 1)])
@pytest.mark.parametrize("depth, momentum, clip", [(1, True, None), (2, True, 0.5), (3, False, 2.0)])
def test_chunks_at_once_are_the_recurrence_and_so_are_its_gradients(n, chunk, depth, momentum, clip):
    *inputs, weights = drawn(n, depth=depth, momentum=momentum)
    state = MemoryState.of(weights, 2, momentum=momentum)
    fast, after = memorise(*inputs, state, chunk=chunk, clip=clip)
    plain, plainly = memorise_plainly(*inputs, state, chunk=chunk, clip=clip)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    for one, other in zip((*after.layers, *after.begun), (*plainly.layers, *plainly.begun)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    leaves = [*inputs[:3], inputs[3].rate, inputs[3].log_keep, *weights]
    for one, other in zip(
        torch.autograd.grad(fast.sin().sum(), leaves), torch.autograd.grad(plain.sin().sum(), leaves)
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("cut", [1, 3, 4, 9])
def test_a_carried_state_goes_on_in_the_middle_of_a_chunk(cut):
    *inputs, weights = drawn(13)
    state = MemoryState.of(weights, 2, momentum=True)
    whole, after = memorise(*inputs, state, chunk=4)
    first, between_them = memorise(*some_tokens(inputs, 0, cut), state, chunk=4)
    second, end = memorise(*some_tokens(inputs, cut, 13), between_them, chunk=4)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(end.layers, after.layers, rtol=0, atol=1e-12)
    assert end.length == after.length == 13


def test_tokens_that_are_not_real_leave_everything_as_it_was():
    *inputs, weights = drawn(10)
    state = MemoryState.of(weights, 2, momentum=True)
    kept = torch.tensor([0, 1, 4, 5, 6, 9])
    real = torch.zeros(2, 10, dtype=torch.bool)
    real[:, kept] = True
    padded, after = memorise(*inputs, state, chunk=16, real=real)
    q, k, v, gates = inputs
    some = Gates(*(x[..., kept] for x in (gates.rate, gates.log_keep, gates.log_momentum)))
    alone, end = memorise(*(x[:, :, kept] for x in (q, k, v)), some, state, chunk=16)
    torch.testing.assert_close(padded[:, :, kept], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.layers, end.layers, rtol=0, atol=1e-12)


def test_a_write_by_hand():
    """One number as a memory: W = 2, k = 1, v = 5, θ = 0.25, γ = 0.5, η = 0.5, S = 0, and then the same."""
    one = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    gates = Gates(*(x.expand(1, 1, 2) for x in (one[0, 0, 0] * 0.25, one[0, 0, 0] * 0.5, one[0, 0, 0] * 0.5)))
    gates = Gates(gates.rate, gates.log_keep.log(), gates.log_momentum.log())
    state = MemoryState.of([2 * one[0, :, :1]], 1, momentum=True)
    out, after = memorise(3 * one, one, 5 * one, gates, state, chunk=1)
    # S = 0.25·2·(5 - 2) = 1.5 and W = 1 + 1.5; then S = 0.75 + 0.25·2·(5 - 2.5) = 2 and W = 1.25 + 2.
    assert out.flatten().tolist() == [7.5, 9.75]
    assert after.layers[0].flatten().tolist() == [3.25, 2.0]


def test_the_error_falls_after_writing():
    q, k, v, gates, weights = drawn(12, width=8)
    gates = Gates(gates.rate, 0 * gates.log_keep, gates.log_momentum)
    state = MemoryState.of(weights, 2, momentum=True)
    _, after = memorise(q, k, v, gates, state, chunk=4)
    before, behind = ((recall(each.weights, k) - v).square().mean((2, 3)) for each in (state, after))
    assert (behind < before).all() and behind.mean() < 0.8 * before.mean()


def test_a_gradient_longer_than_the_clip_is_shortened_to_it():
    *inputs, weights = drawn(1, depth=1, momentum=False)
    q, k, v, gates = inputs
    still = Gates(torch.ones_like(gates.rate), torch.zeros_like(gates.rate), None)
    state = MemoryState.of(weights, 2, momentum=False)
    _, after = memorise(q, k, 50 * v, still, state, chunk=1, clip=0.5)
    moved = (after.weights[0] - state.weights[0]).norm(dim=(-2, -1))
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5))
    _, free = memorise(q, k, 50 * v, still, state, chunk=1)
    assert ((free.weights[0] - state.weights[0]).norm(dim=(-2, -1)) > 10).all()


def test_strong_forgetting_does_not_cancel():
    """Gates of e^-700 before a mild one: the mild one's share is not drowned in the sum of logs."""
    log_gate = torch.tensor([-700.0, -700.0, -700.0, -0.25])
    torch.testing.assert_close(
        between(log_gate)[3, 2].item(), torch.tensor(-0.25).exp().item(), rtol=1e-6, atol=0
    )
    shares = Shares.over(log_gate, log_gate)
    assert all(x.isfinite().all() for x in (shares.before, shares.landed, shares.passing, shares.last))


def test_a_state_that_does_not_fit_is_refused():
    q, k, v, gates, weights = drawn(3)
    state = MemoryState.of(weights, 2, momentum=True)
    with pytest.raises(ValueError, match="another configuration"):
        memorise(q[..., :4], k[..., :4], v, gates, state, chunk=4)
    with pytest.raises(ValueError, match="with momentum there are 2"):
        memorise(q, k, v, Gates(gates.rate, gates.log_keep, None), state, chunk=4)
    with pytest.raises(ValueError, match="chunk is 0"):
        memorise(q, k, v, gates, state, chunk=0)
