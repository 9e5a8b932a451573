"""What backbones cost: parameters, multiply-adds and the time of a forward pass, by the size of the image.

Counted on shapes alone (the meta device), so that the largest variant takes no memory. The multiply-adds are
those of matrix products, convolutions and attentions, as papers count them; norms, activations, softmax
and additions are not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regardant.atlas import catalog
from regardant.backbone.kit.named import NamedNetwork
from regardant.compare.clock import clock
from regardant.core.errors import require
from regardant.core.operations import flops

SIZES = (32, 64, 128, 224, 256)


def is_backbone(name: str) -> bool:
    """Whether this name (or `module:Class`) is a backbone on images, or a variant of one."""
    if ":" in name or catalog.system(name).kind != "backbone":
        return False
    return issubclass(catalog.resolve(name), NamedNetwork)


@dataclass(frozen=True)
class Counted:
    """A network on one image of `size` × `size`."""

    parameters: int
    multiply_adds: int
    size: int


def counted(backbone: str | nn.Module, *, size: int = 224, **config: Any) -> Counted:
    """Parameters and multiply-adds of a backbone, or of the one of this name (made with `config`)."""
    require(size >= 1, f"size is {size}, but an image is at least 1 wide")
    if isinstance(backbone, str):
        with torch.device("meta"):
            backbone = catalog.create(backbone, **config)
    shapes = next(backbone.parameters()).is_meta
    network = backbone if shapes else deepcopy(backbone).to("meta")
    training, image = network.training, torch.empty(1, network.image_channels, size, size, device="meta")
    network.eval()
    with torch.no_grad():
        operations = flops(lambda: network(image))
    network.train(training)
    return Counted(sum(each.numel() for each in network.parameters()), operations // 2, size)


@dataclass(frozen=True)
class BackboneCost:
    """What one backbone takes for images of one size."""

    system: str
    size: int
    parameters: int
    multiply_adds: int
    seconds: float | None
    """Of a forward pass of one image; None where it was not measured."""


def measure(
    names: Sequence[str], *, sizes: Sequence[int] = SIZES, timed: bool = True, budget: float = 0.2,
    device: str = "cpu", seed: int = 0, progress: Callable[[str], None] = lambda now: None,
) -> list[BackboneCost]:  # fmt: skip
    """Counts, and times of a forward pass in eval mode, for each backbone and size that it takes."""
    require(len(sizes) > 0, "sizes is empty, but something must be measured")
    found = []
    for name in names:
        progress(name)
        with torch.device("meta"):
            network = catalog.create(name)
        taken = [size for size in sorted(set(sizes)) if size >= max(getattr(network, "strides", (1,)))]
        counts = {size: counted(network, size=size) for size in taken}
        times = _times(name, taken, budget, device, seed) if timed and taken else {}
        found += [
            BackboneCost(name, size, each.parameters, each.multiply_adds, times.get(size))
            for size, each in counts.items()
        ]
    return found


def _times(name: str, sizes: Sequence[int], budget: float, device: str, seed: int) -> dict[int, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = catalog.create(name).to(device).eval()
    generator = torch.Generator().manual_seed(seed)
    images = {
        size: torch.randn(1, network.image_channels, size, size, generator=generator).to(device)
        for size in sizes
    }

    def call(image: torch.Tensor):
        def run() -> None:
            with torch.no_grad():
                network(image)

        return run

    calls = {size: call(image) for size, image in images.items()}
    return {size: timing.best for size, timing in clock(calls, budget=budget, device=device)}
