"""Decayed linear attention in one block: against the equation."""

import pytest
import torch

from regardant.core.decayed_linear import decayed_linear, decayed_linear_reference
from regardant.core.decayed_whole import WHOLE, decayed_whole


def operands(n, heads=4, groups=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    shapes = ((2, heads, n, 5), (2, groups, n, 5), (2, groups, n, 3))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.parametrize("n", [1, 2, 65])
@pytest.mark.parametrize("log_decay", [None, [0.0, -0.1, -3.0, -1e6]])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_output_and_gradients_are_the_equations(n, log_decay, groups):
    given = operands(n, groups=groups)
    rates = None if log_decay is None else torch.tensor(log_decay, dtype=torch.float64)
    found, right = decayed_whole(*given, rates), decayed_linear_reference(*given, rates)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-9)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = zip(torch.autograd.grad(found, given, direction), torch.autograd.grad(right, given, direction))
    for mine, plain in pairs:
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-9)


def test_one_block_and_many_give_the_same_where_they_meet():
    rates = torch.tensor([-0.01, -0.1, -0.5, 0.0], dtype=torch.float64)
    q, k, v = operands(WHOLE + 1)
    many = decayed_linear(q, k, v, rates)[:, :, :WHOLE]
    one = decayed_linear(*(x[:, :, :WHOLE] for x in (q, k, v)), rates)
    torch.testing.assert_close(one, many, rtol=0, atol=1e-9)


def test_half_precision_is_summed_in_single():
    given = operands(100, dtype=torch.bfloat16)
    found = decayed_whole(*given, torch.full((4,), -0.01))
    assert found.dtype == torch.bfloat16
    right = decayed_linear_reference(*(x.float() for x in given), torch.full((4,), -0.01))
    torch.testing.assert_close(found.float(), right, rtol=1e-2, atol=1e-2)
    assert [each.dtype for each in torch.autograd.grad(found.sum(), given)] == [torch.bfloat16] * 3
