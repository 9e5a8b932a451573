"""The delta rule with momentum and forgetting, chunk by chunk against token by token."""

import pytest
import torch

from regardant.core.delta_rule import delta_rule, delta_rule_reference
from regardant.core.surprise import Gates, MemoryState, memorise


def drawn(n, *, keep=True, momentum=True, batch=2, heads=3, d=5, e=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k = random(batch, heads, n, d)
    inputs = [random(batch, heads, n, d), k / k.norm(dim=-1, keepdim=True), random(batch, heads, n, e)]
    inputs.append(random(batch, heads, n).sigmoid())
    inputs.append(-0.3 * random(batch, heads, n).abs() if keep else None)
    inputs.append(-random(batch, heads, n).abs() if momentum else None)
    return [None if x is None else x.requires_grad_() for x in inputs]


@pytest.mark.parametrize("n, chunk", [(1, 4), (4, 4), (7, 4), (19, 8), (12, 1), (9, 32)])
@pytest.mark.parametrize("keep, momentum", [(False, False), (True, False), (True, True)])
def test_chunks_are_the_recurrence_and_so_are_their_gradients(n, chunk, keep, momentum):
    inputs = drawn(n, keep=keep, momentum=momentum)
    fast, state = delta_rule(*inputs, chunk=chunk)
    plain, last = delta_rule_reference(*inputs)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-10)
    leaves = [x for x in inputs if x is not None]
    ours = torch.autograd.grad(fast.sin().sum() + state.cos().sum(), leaves)
    theirs = torch.autograd.grad(plain.sin().sum() + last.cos().sum(), leaves)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_it_is_the_neural_memory_of_one_matrix_whose_chunks_are_single_tokens():
    q, k, v, rate, log_keep, log_momentum = drawn(17, e=5)
    first = torch.randn(3, 5, 5, dtype=torch.float64)
    memory = MemoryState.of([first], 2, momentum=True)
    out, after = memorise(q, k, v, Gates(rate / 2, log_keep, log_momentum), memory, chunk=1)
    fast, state = delta_rule(q, k, v, rate, log_keep, log_momentum, state=memory.layers[0], chunk=8)
    torch.testing.assert_close(fast, out, rtol=0, atol=1e-10)
    torch.testing.assert_close(state, after.layers[0], rtol=0, atol=1e-10)


def test_a_carried_state_goes_on():
    inputs = drawn(15)
    whole, last = delta_rule(*inputs, chunk=4)
    first, state = delta_rule(*(x[:, :, :6] for x in inputs), chunk=4)
    second, end = delta_rule(*(x[:, :, 6:] for x in inputs), state=state, chunk=4)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(end, last, rtol=0, atol=1e-10)


def test_padding_changes_nothing():
    inputs, real = drawn(11), torch.rand(2, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    fast, state = delta_rule(*inputs, real=real, chunk=4)
    plain, last = delta_rule_reference(*inputs, real=real)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    kept = real[0].nonzero()[:, 0]
    _, alone = delta_rule(*(x[:1, :, kept] for x in inputs))
    torch.testing.assert_close(state[:1], alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-10)


def test_a_key_written_again_at_rate_one_says_its_new_value_and_others_stay():
    key, values = torch.eye(3, dtype=torch.float64)[[0, 1, 0]], torch.tensor([[1.0], [2.0], [5.0]]).double()
    shape = (1, 1, 3)
    rate = torch.ones(shape, dtype=torch.float64)
    _, state = delta_rule(key.expand(1, 1, 3, 3), key.expand(1, 1, 3, 3), values.expand(1, 1, 3, 1), rate)
    assert state.flatten().tolist() == [5.0, 2.0, 0.0]


def test_what_does_not_fit_is_refused():
    q, k, v, rate, log_keep, log_momentum = drawn(5)
    _, state = delta_rule(q, k, v, rate, log_keep)
    with pytest.raises(ValueError, match="from another configuration"):
        delta_rule(q, k, v, rate, log_keep, log_momentum, state=state)
    with pytest.raises(ValueError, match="rate is"):
        delta_rule(q, k, v, rate[..., :3])
    with pytest.raises(ValueError, match="the length is 0"):
        delta_rule(q[:, :, :0], k[:, :, :0], v[:, :, :0], rate[:, :, :0])
