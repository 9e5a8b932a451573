"""x Wᵀ + b by the faster of the two libraries that torch carries for it on a CPU.

`torch.nn.functional.linear` asks MKL, which leaves 5 to 30% of what an AMD processor's cores can do in
products of middling size; oneDNN, which does torch's convolutions, leaves less. Below `ENOUGH` multiply-adds
its longer way there costs more than it saves, and on other processors MKL keeps its own.

Several products with one input (`projections`) are one step on the way back.

Whatever is not plain (other devices and types, tensors that stand for others, transforms, tracing, modes
that want to see each operation) goes the common way, and counts as it always did.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules import module as modules

from regardant.core.checks import under_autocast

ENOUGH = 2**25
"""Multiply-adds from which on oneDNN is asked."""
ROWS, DEEP = 16, 256
"""With fewer rows it is a product of a vector and a matrix, more or less, which memory bounds; with sums of
fewer terms what is read and written is, and neither library leads."""
PLAIN = (Tensor, nn.Parameter)
EVERYWHERE = (
    modules._global_forward_hooks, modules._global_forward_pre_hooks, modules._global_backward_hooks,
    modules._global_backward_pre_hooks,
)  # fmt: skip
"""Hooks of all modules."""


def linear(
    x: Float[Tensor, "*b n"], weight: Float[Tensor, "m n"], bias: Float[Tensor, "m"] | None = None
) -> Float[Tensor, "*b m"]:
    """`torch.nn.functional.linear`, by oneDNN where that is faster."""
    if x.numel() * weight.shape[0] < ENOUGH or not _goes(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias)):
        return _Product.apply(x, weight, bias)
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`: the same parameters, names and beginnings."""

    def forward(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b m"]:
        if x.numel() * self.out_features < ENOUGH:  # for the sake of single tokens
            return F.linear(x, self.weight, self.bias)
        return linear(x, self.weight, self.bias)


def projections(x: Float[Tensor, "*b n"], *layers: nn.Module) -> tuple[Float[Tensor, "*b _"], ...]:
    """What each of several layers makes of one input. While training, what they say of the input on the way
    back is summed in one place, product by product."""
    learns = torch.is_grad_enabled() and x.requires_grad
    if not learns or not replaceable(x, *layers):
        return tuple(layer(x) for layer in layers)
    parameters = [*(layer.weight for layer in layers), *(layer.bias for layer in layers)]
    return _Products.apply(x, *parameters) if _plain(x, *parameters) else tuple(layer(x) for layer in layers)


def replaceable(x: Tensor, *layers: nn.Module) -> bool:
    """Whether layers are products that nobody would miss, if what comes of them came about otherwise."""
    return all(is_linear(layer) and not listened_to(layer) for layer in layers) and not watched(x.device.type)


def listened_to(part: nn.Module) -> bool:
    """Whether a hook hears or changes what a part takes or gives: then it is to be called as it is."""
    return any(map(len, EVERYWHERE)) or _has_hooks(part)


def _has_hooks(part: nn.Module) -> bool:
    own = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    return bool(own) or any(child is not None and _has_hooks(child) for child in part._modules.values())


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is x Wᵀ + b and nothing else besides, as a subclass may be."""
    return type(layer) in (nn.Linear, Linear)


def _goes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    enough = x.shape[-1] >= DEEP and x.numel() >= ROWS * x.shape[-1]
    return enough and _plain(x, weight, bias) and x.device.type == "cpu" and onednn_leads()


def _plain(*parts: Tensor | None) -> bool:
    """Whether these are float32 of torch's own kind, with nobody who wants to see each operation."""
    device = parts[0].device
    for part in parts:
        if part is None:
            continue
        if type(part) not in PLAIN or part.dtype != torch.float32 or part.device != device:
            return False
    return not watched(device.type)


def watched(device_type: str) -> bool:
    """Whether somebody wants to see each operation, or changes what it does: then the common ones are due."""
    return bool(
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or under_autocast(device_type)
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )


@cache
def onednn_leads() -> bool:
    """Whether this is a processor of AMD's, and torch has what is needed."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """oneDNN's product has no gradient of its own; those of the weights are MKL's, which is as fast there."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, out):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = out.reshape(-1, out.shape[-1])
        return (
            linear(out, weight.mT) if for_x else None,
            rows.mT @ x.reshape(-1, x.shape[-1]) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


class _Products(torch.autograd.Function):
    """Several products with one input."""

    @staticmethod
    def forward(ctx, x, *parameters):
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        ctx.save_for_backward(x, *weights)
        return tuple(linear(x, weight, bias) for weight, bias in zip(weights, biases))

    @staticmethod
    def backward(ctx, *outs):
        x, *weights = ctx.saved_tensors
        count, (for_x, *wanted) = len(weights), ctx.needs_input_grad
        rows, outs = x.reshape(-1, x.shape[-1]), [out.reshape(-1, out.shape[-1]) for out in outs]
        back = None
        for out, weight in zip(outs, weights) if for_x else ():
            back = out @ weight if back is None else back.addmm_(out, weight)
        return (
            None if back is None else back.view_as(x),
            *(out.mT @ rows if want else None for out, want in zip(outs, wanted)),
            *(out.sum(0) if want else None for out, want in zip(outs, wanted[count:])),
        )
