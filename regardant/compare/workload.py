"""What is measured: a system at a length, run forward, or forward and backward."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib import import_module
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from regardant.atlas import catalog
from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.grid_mixer import GridMixer

PHASES = ("forward", "backward", "decode")
"""`backward` is forward and backward together; `decode` is one token more, behind so many."""


@dataclass(frozen=True)
class Setting:
    """A system and the shape of its input. `causal` is a wish: a system that cannot be is not."""

    system: str
    dim: int = 128
    heads: int = 2
    batch: int = 1
    causal: bool = True
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def resolve(name: str) -> Any:
    """The class of a system, or anybody's own by `module:Class`."""
    if ":" not in name:
        return catalog.resolve(name)
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no class is found at {name!r}: {error}") from error


def kind_of(name: str) -> str:
    """sequence, grid or gate: what the system's input looks like."""
    constructor = resolve(name)
    bases = constructor if isinstance(constructor, type) else type(constructor)
    if issubclass(bases, GridMixer):
        return "grid"
    if issubclass(bases, Gate):
        return "gate"
    kind = "sequence" if ":" in name else catalog.system(name).kind
    require(
        kind == "sequence",
        f"{name!r} is of kind {kind}, but cost measures systems of sequence, grid and gate",
    )
    return kind


def settle(setting: Setting) -> Setting:
    """The setting with `causal` as this system can have it."""
    supports = getattr(resolve(setting.system), "supports", None)
    kind = kind_of(setting.system)
    can = kind == "sequence" and getattr(supports, "causal", True)
    must = kind == "sequence" and not getattr(supports, "noncausal", True)
    return replace(setting, causal=(setting.causal and can) or must)


def decodes(setting: Setting) -> bool:
    """Whether there is a per-token cost to measure."""
    supports = getattr(resolve(setting.system), "supports", None)
    return setting.causal and kind_of(setting.system) == "sequence" and getattr(supports, "step", False)


def map_size(length: int) -> tuple[int, int]:
    """Height and width of the map nearest to a square that has `length` positions (at most 4 to 1, or
    else the square just below)."""
    side = isqrt(length)
    height = next(side - less for less in range(side) if length % (side - less) == 0)
    return (height, length // height) if height * height * 4 >= length else (side, side)


class Workload:
    """A layer, and calls of it at any length."""

    def __init__(self, setting: Setting):
        self.setting, self.kind = settle(setting), kind_of(setting.system)
        own = (
            dict(channels=setting.dim) if self.kind == "gate" else dict(dim=setting.dim, heads=setting.heads)
        )
        if self.kind == "sequence":
            own["causal"] = self.setting.causal
        constructor = resolve(setting.system)
        catalog.bind(setting.system, constructor, own)
        with torch.random.fork_rng():
            torch.manual_seed(setting.seed)
            layer: nn.Module = constructor(**own)
        self.dtype = getattr(torch, setting.dtype)
        self.layer = layer.to(device=setting.device, dtype=self.dtype)

    def draw(self, length: int) -> Tensor:
        """An input of so many positions."""
        shape: tuple[int, ...] = (length, self.setting.dim)
        if self.kind != "sequence":
            height, width = map_size(length)
            shape = (height, width, shape[1]) if self.kind == "grid" else (shape[1], height, width)
        generator = torch.Generator().manual_seed(self.setting.seed + length)
        return torch.randn(self.setting.batch, *shape, generator=generator).to(
            self.setting.device, self.dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.layer(x)

    def backward(self, x: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Forward, and the gradients of the input and of every parameter."""
        x = x.detach().requires_grad_()
        wanted = [x, *(weight for weight in self.layer.parameters() if weight.requires_grad)]
        return torch.autograd.grad(self.layer(x), wanted, grad, allow_unused=True)

    def run(self, phase: str, x: Tensor) -> object:
        return self.forward(x) if phase == "forward" else self.backward(x, x)
