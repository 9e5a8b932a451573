"""Simulated post-training quantisation, and the outliers that break it.

Weights are rounded symmetrically by their largest absolute value, inputs of linear layers (and their
outputs, if asked) asymmetrically by the range that calibration saw: the scheme of Bondarenko et al. (2023,
arXiv 2306.12929). A range is that of all calibration, or of its batches as a running mean, as the authors
have it, each with or without the outermost values. What is simulated is the error, not the speed.
"""

from __future__ import annotations

from collections import defaultdict
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


@dataclass(frozen=True)
class Ranges:
    """How the range of an activation is told from calibration batches.

    `percentile` of the values lie below the upper end, and above the lower one; 100 takes them all.
    `momentum` is what a running mean over the batches keeps of what it was; None takes the widest range.
    """

    percentile: float = 100.0
    momentum: float | None = None

    def __post_init__(self) -> None:
        require(
            50 < self.percentile <= 100, f"percentile is {self.percentile}, but it is above 50, up to 100"
        )
        require(
            self.momentum is None or 0 <= self.momentum < 1,
            f"momentum is {self.momentum}, but it is the share that stays: from 0 to below 1",
        )

    def seen(self, x: Float[Tensor, "..."], before: tuple[float, float] | None) -> tuple[float, float]:
        """The range after one more batch."""
        if self.percentile == 100:
            low, high = x.min().item(), x.max().item()
        else:
            flat = x.flatten().double().sort().values
            low, high = (_quantile(flat, share / 100) for share in (100 - self.percentile, self.percentile))
        if before is None:
            return low, high
        if self.momentum is None:
            return min(before[0], low), max(before[1], high)
        keep = self.momentum
        return keep * before[0] + (1 - keep) * low, keep * before[1] + (1 - keep) * high


def _quantile(ordered: Float[Tensor, "n"], share: float) -> float:
    """Between its two neighbours in proportion (torch's own refuses more than 16 million values)."""
    place = share * (len(ordered) - 1)
    below = int(place)
    low, high = ordered[below].item(), ordered[min(below + 1, len(ordered) - 1)].item()
    return low + (place - below) * (high - low)


WHOLE = Ranges()
RUNNING = Ranges(momentum=0.9)
"""The authors' default."""


@contextmanager
def quantized(
    model: nn.Module, samples: Iterable[Tensor], *, bits: int, keep: Iterable[nn.Module] = (),
    ranges: Ranges = WHOLE, outputs: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Inside, every linear layer but those to `keep` has rounded weights and rounds its input.

    With `outputs` it rounds what it gives, too. The ranges are those of activations on `samples`. On exit
    the model is what it was.
    """
    kept = {id(module) for module in keep}
    layers = [
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in kept
    ]
    taken, given = _calibrate(model, layers, samples, ranges)
    whole = {id(layer): layer.weight.detach().clone() for layer in layers}
    hooks = []
    try:
        for layer in layers:
            layer.weight.data.copy_(rounded_symmetrically(layer.weight.data, bits))
            hooks.append(layer.register_forward_pre_hook(_rounds_input(*taken[id(layer)], bits)))
            if outputs:
                hooks.append(layer.register_forward_hook(_rounds_output(*given[id(layer)], bits)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.weight.data.copy_(whole[id(layer)])


def _rounds_input(low: float, high: float, bits: int):
    return lambda _, inputs: (rounded(inputs[0], low, high, bits), *inputs[1:])


def _rounds_output(low: float, high: float, bits: int):
    return lambda _, inputs, output: rounded(output, low, high, bits)


Seen = dict[int, tuple[float, float]]


@torch.no_grad()
def _calibrate(
    model: nn.Module, layers: list[nn.Linear], samples: Iterable[Tensor], ranges: Ranges
) -> tuple[Seen, Seen]:
    """The ranges of every layer's inputs and outputs; (0, 0) where a layer never ran."""
    taken: Seen = {}
    given: Seen = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        taken[id(layer)] = ranges.seen(inputs[0], taken.get(id(layer)))
        given[id(layer)] = ranges.seen(output, given.get(id(layer)))

    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        for sample in samples:
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    idle = {id(layer): (0.0, 0.0) for layer in layers}
    return idle | taken, idle | given


@dataclass(frozen=True)
class Outliers:
    """How far the largest activations stand out."""

    largest: float
    """The mean over samples and layers of the largest absolute value."""
    kurtosis: float
    """The mean over samples and layers of E[(x - μ)⁴] / σ⁴; 3 for a normal distribution."""
    worst: float
    """That of the largest absolute value over samples, in the layer where it is largest."""


@torch.no_grad()
def outliers(model: nn.Module, watched: Iterable[nn.Module], samples: Iterable[Tensor]) -> Outliers:
    """Of the outputs of the `watched` modules while the model runs on `samples`."""
    largest: dict[int, list[Tensor]] = defaultdict(list)
    kurtosis: list[Tensor] = []

    def watch(module: nn.Module, inputs, output: Tensor) -> None:
        flat = output.flatten(1).double()
        away = flat - flat.mean(dim=1, keepdim=True)
        variance = away.square().mean(dim=1)
        largest[id(module)].append(flat.abs().amax(dim=1))
        kurtosis.append(away.pow(4).mean(dim=1) / variance.square().clamp(min=1e-30))

    hooks = [module.register_forward_hook(watch) for module in watched]
    try:
        for sample in samples:
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    require(len(largest) > 0, "nothing was watched: no module that is watched ran on a sample")
    layers = [torch.cat(found) for found in largest.values()]
    return Outliers(
        largest=torch.cat(layers).mean().item(),
        kurtosis=torch.cat(kurtosis).mean().item(),
        worst=max(found.mean().item() for found in layers),
    )
