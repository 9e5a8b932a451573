"""Depthwise convolutions with large kernels: values and gradients are torch's own."""

import pytest
import torch
from torch.nn import functional as F

from regardant.core import depthwise as depthwise_module
from regardant.core.depthwise import depthwise, kernel_gradient

CASES = [
    ((6, 9), 3),
    ((6, 9), 5),
    ((7, 8), 7),
    ((1, 1), 7),
    ((2, 3), 5),
    ((2, 2), 9),
    ((5, 1), 3),
    ((3, 4), 1),
]


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size", "kernel"), CASES, ids=str)
def test_values_and_gradients_are_those_of_torch(size, kernel):
    x, weight = drawn(2, *size, 3).permute(0, 3, 1, 2), drawn(3, 1, kernel, kernel, seed=1)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    found = depthwise(x, weight, padding=kernel // 2)
    wanted = F.conv2d(x, weight, padding=kernel // 2, groups=3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    direction = drawn(*wanted.shape, seed=2)
    for own, plain in zip(
        *(torch.autograd.grad((y * direction).sum(), (x, weight)) for y in (found, wanted))
    ):
        torch.testing.assert_close(own, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("together", [0, depthwise_module.TOGETHER])
def test_a_kernel_is_put_together_of_blocks(monkeypatch, together):
    monkeypatch.setattr(depthwise_module, "TOGETHER", together)
    x, grad, weight = drawn(1, 2, 4, 5), drawn(1, 2, 4, 5, seed=1), drawn(2, 1, 5, 5, seed=2)
    found, wide = kernel_gradient(grad, x, weight, padding=2), F.pad(x, (2,) * 4)
    for down in range(5):
        for right in range(5):
            wanted = (wide[:, :, down : down + 4, right : right + 5] * grad).sum((0, 2, 3))
            torch.testing.assert_close(found[:, 0, down, right], wanted, rtol=0, atol=1e-12)


def test_a_frozen_kernel_and_a_frozen_map_are_left_alone():
    x, weight = drawn(1, 2, 6, 6).requires_grad_(), drawn(2, 1, 5, 5)
    (own,) = torch.autograd.grad(depthwise(x, weight, padding=2).sum(), x)
    assert torch.allclose(own[0, 0, 3, 3], weight[0].sum())
    weight.requires_grad_()
    (own,) = torch.autograd.grad(depthwise(x.detach(), weight, padding=2).sum(), weight)
    assert own.shape == weight.shape
