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
TOGETHER = 3 << 18
"""Numbers that a copy of the map for each block may come to, for all blocks to be worked on at once: what a
CPU's caches hold."""


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
    (channels, _, side, _), (height, width) = weight.shape, grad.shape[2:]
    # Blocks that stick out meet zeros, and what they find is cut off.
    blocks = -(-side // BLOCK)
    spare = blocks * BLOCK - side
    wide = F.pad(x, (padding, padding + spare) * 2).permute(0, 2, 3, 1)
    # What each block looks at: [b, blocks, blocks, c, height and width with a margin].
    seen = wide.unfold(1, height + BLOCK - 1, BLOCK).unfold(2, width + BLOCK - 1, BLOCK)
    if blocks**2 * x.numel() <= TOGETHER:
        # All at once, as channels of their own.
        seen = seen.permute(0, 4, 5, 1, 2, 3).flatten(3).permute(0, 3, 1, 2)
        grads = grad.permute(0, 2, 3, 1)[..., None, :].expand(-1, -1, -1, blocks**2, -1)
        found = _of_block(grads.flatten(3).permute(0, 3, 1, 2), seen)
    else:
        found = torch.cat([_of_block(grad, part) for row in seen.unbind(1) for part in row.unbind(1)])
    found = found.view(blocks, blocks, channels, BLOCK, BLOCK).permute(2, 0, 3, 1, 4)
    return found.reshape(channels, 1, blocks * BLOCK, blocks * BLOCK)[..., :side, :side]


def _of_block(
    grad: Float[Tensor, "b c i j"], seen: Float[Tensor, "b c y x"]
) -> Float[Tensor, "c 1 block block"]:
    weight = grad.new_empty(grad.shape[1], 1, BLOCK, BLOCK)
    _, found, _ = _gradients(grad, seen, weight, 0, (False, True, False))
    return found


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], len(weight), wanted
    )
