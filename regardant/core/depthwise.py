"""Depthwise convolutions with large kernels on channels-last maps, trained on a CPU.

The gradient of a kernel is, tap by tap, Σ x[i + δ] · g[i]. oneDNN has a fast way for kernels of 3 × 3 and
slow ones for larger kernels, tens of times slower a tap on small maps of many channels; so a larger kernel's
gradient is put together from blocks of 3 × 3 taps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 3
"""Taps along the side of a block."""


def depthwise(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "c 1 k k"], *, padding: int
) -> Float[Tensor, "b c i j"]:
    """Each channel convolved with its own kernel, an odd one; `x` has its channels last in memory."""
    # On a small map no two positions stand as far apart as the outer taps.
    spare = max(0, min(padding, weight.shape[-1] // 2) - max(x.shape[2:]) + 1)
    if spare:
        weight, padding = weight[..., spare:-spare, spare:-spare], padding - spare
    learns = torch.is_grad_enabled() and weight.requires_grad
    if learns and x.device.type == "cpu" and weight.shape[-1] > BLOCK:
        return _Depthwise.apply(x, weight, padding)
    return F.conv2d(x, weight, padding=padding, groups=len(weight))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, padding):
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, padding=padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.to(x.dtype)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x, _, _ = _gradients(grad, x, weight, ctx.padding, (True, False, False))
        return by_x, kernel_gradient(grad, x, weight, padding=ctx.padding), None


def kernel_gradient(
    grad: Float[Tensor, "b c i j"], x: Float[Tensor, "b c h w"], weight: Float[Tensor, "c 1 k k"],
    *, padding: int,
) -> Float[Tensor, "c 1 k k"]:  # fmt: skip
    """What the kernels of a depthwise convolution get, block by block."""
    side, (height, width) = weight.shape[-1], grad.shape[2:]
    # Blocks that stick out meet zeros, and what they find is cut off.
    blocks = -(-side // BLOCK)
    spare = blocks * BLOCK - side
    wide = F.pad(x, (padding, padding + spare) * 2)
    found = weight.new_empty(len(weight), 1, blocks * BLOCK, blocks * BLOCK)
    like = found[..., :BLOCK, :BLOCK]
    for top in range(0, side, BLOCK):
        for left in range(0, side, BLOCK):
            part = wide[:, :, top : top + height + BLOCK - 1, left : left + width + BLOCK - 1]
            _, own, _ = _gradients(grad, part, like, 0, (False, True, False))
            found[..., top : top + BLOCK, left : left + BLOCK] = own
    return found[..., :side, :side]


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], len(weight), wanted
    )
