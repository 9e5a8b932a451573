import pytest
import torch

from regardant.core.decayed_linear import decayed_linear, decayed_linear_reference, decayed_linear_step


def draw(n, *, batch=2, heads=3, groups=None, d=5, e=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    groups = heads if groups is None else groups
    q, k, v = normal(batch, heads, n, d), normal(batch, groups, n, d), normal(batch, groups, n, e)
    log_decay = -torch.linspace(0.01, 1.5, heads, dtype=torch.float64)
    return q, k, v, log_decay, normal(batch, heads, d, e)


def state_by_steps(q, k, v, log_decay, state):
    outs = []
    for t in range(q.shape[2]):
        out, state = decayed_linear_step(q[:, :, t], k[:, :, t], v[:, :, t], state, log_decay)
        outs.append(out)
    return torch.stack(outs, dim=2), state


@pytest.mark.parametrize("n", [1, 2, 7, 64, 100, 257, 1300])
@pytest.mark.parametrize("block", [1, 8, 16, 64, 100])
def test_equals_the_plain_equation(n, block):
    q, k, v, log_decay, state = draw(n, batch=1 + n % 2)
    out, last = decayed_linear(q, k, v, log_decay, state=state, return_state=True, block=block)
    stepped, stepped_last = state_by_steps(q, k, v, log_decay, state)
    torch.testing.assert_close(
        out, decayed_linear_reference(q, k, v, log_decay, state=state), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(out, stepped, rtol=0, atol=1e-9)
    torch.testing.assert_close(last, stepped_last, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [1, 7, 64, 100])
@pytest.mark.parametrize("block", [8, 16, 64])
def test_backward_is_exact(n, block):
    q, k, v, log_decay, state = draw(n, batch=1, heads=2, groups=1 + n % 2, d=3, e=2)
    inputs = [x.requires_grad_() for x in (q, k, v, state)]

    def both(q, k, v, state):
        return decayed_linear(q, k, v, log_decay, state=state, return_state=True, block=block)

    assert torch.autograd.gradcheck(both, inputs, fast_mode=True)
    if n <= 7:
        assert torch.autograd.gradcheck(both, inputs)
