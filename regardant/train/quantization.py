"""Simulated post-training quantisation, and the outliers that break it.

Weights are rounded symmetrically by their largest absolute value, inputs of linear layers
asymmetrically by the range that calibration saw: the scheme of Bondarenko et al. (2023, arXiv
2306.12929), min-max throughout. What is simulated is the error, not the speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require


def rounded(x: Float[Tensor, "..."], low: float, high: float, bits: int) -> Float[Tensor, "..."]:
    """x on a grid of 2^bits levels from `low` to `high`, zero among them; what lies outside is clipped."""
    require(bits >= 2, f"bits is {bits}, but a grid has at least 2")
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return torch.zeros_like(x)
    step = (high - low) / (2**bits - 1)
    zero = round(-low / step)
    return ((x / step).round() + zero).clamp(0, 2**bits - 1).sub(zero) * step


def rounded_symmetrically(x: Float[Tensor, "..."], bits: int) -> Float[Tensor, "..."]:
    """x on the whole multiples of its largest absolute value / (2^(bits-1) - 1)."""
    require(bits >= 2, f"bits is {bits}, but a grid has at least 2")
    largest = x.abs().max().item()
    if largest == 0:
        return x
    step = largest / (2 ** (bits - 1) - 1)
    return (x / step).round() * step


@contextmanager
def quantized(
    model: nn.Module, samples: Iterable[Tensor], *, bits: int, keep: Iterable[nn.Module] = ()
) -> Iterator[None]:
    """Inside, every linear layer but those to `keep` has rounded weights and rounds its input.

    The ranges of inputs are those seen on `samples`. On exit the model is what it was.
    """
    kept = {id(module) for module in keep}
    layers = [
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in kept
    ]
    ranges = _calibrate(model, layers, samples)
    whole = {id(layer): layer.weight.detach().clone() for layer in layers}
    hooks = []
    try:
        for layer in layers:
            layer.weight.data.copy_(rounded_symmetrically(layer.weight.data, bits))
            low, high = ranges[id(layer)]
            hooks.append(layer.register_forward_pre_hook(_rounds(low, high, bits)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.weight.data.copy_(whole[id(layer)])


def _rounds(low: float, high: float, bits: int):
    return lambda _, inputs: (rounded(inputs[0], low, high, bits), *inputs[1:])


@torch.no_grad()
def _calibrate(
    model: nn.Module, layers: list[nn.Linear], samples: Iterable[Tensor]
) -> dict[int, tuple[float, float]]:
    ranges = {id(layer): (0.0, 0.0) for layer in layers}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = ranges[id(layer)]
        ranges[id(layer)] = min(low, inputs[0].min().item()), max(high, inputs[0].max().item())

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        for sample in samples:
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return ranges


@dataclass(frozen=True)
class Outliers:
    """How far the largest activations stand out."""

    largest: float
    """The mean over samples and layers of the largest absolute value."""
    kurtosis: float
    """The mean over samples and layers of E[(x - μ)⁴] / σ⁴; 3 for a normal distribution."""


@torch.no_grad()
def outliers(model: nn.Module, watched: Iterable[nn.Module], samples: Iterable[Tensor]) -> Outliers:
    """Of the outputs of the `watched` modules while the model runs on `samples`."""
    largest, kurtosis = [], []

    def watch(_, inputs, output: Tensor) -> None:
        flat = output.flatten(1).double()
        away = flat - flat.mean(dim=1, keepdim=True)
        variance = away.square().mean(dim=1)
        largest.append(flat.abs().amax(dim=1))
        kurtosis.append(away.pow(4).mean(dim=1) / variance.square().clamp(min=1e-30))

    hooks = [module.register_forward_hook(watch) for module in watched]
    try:
        for sample in samples:
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    require(len(largest) > 0, "nothing was watched: no module that is watched ran on a sample")
    return Outliers(torch.cat(largest).mean().item(), torch.cat(kurtosis).mean().item())
