"""What is measured: a system at a length, run forward, or forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from regardant.atlas import catalog
from regardant.compare.spec import Spec
from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.grid_mixer import GridMixer

PHASES = ("forward", "backward", "decode")
"""`backward` is forward and backward together; `decode` is one token more, behind so many."""


@dataclass(frozen=True)
class Setting:
    """A system (with options: `spec.py`) and the shape of its input. `causal` is a wish: a system that cannot
    be is not."""

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
    """The class of a system, or anybody's own by `module:Class`; options are left aside."""
    name = Spec.of(name).name
    if ":" not in name:
        return catalog.resolve(name)
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no class is found at {name!r}: {error}") from error


def kind_of(name: str) -> str:
    """sequence, grid or gate: what the system's input looks like."""
    name = Spec.of(name).name
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


def configure(
    system: str, *, dim: int, heads: int, causal: bool, length: int | None = None
) -> dict[str, Any]:  # fmt: skip
    """The keywords for a system's constructor: its options, and what it takes of these.

    `length` is the one to expect (of a map: its positions), for classes that want to know it.
    """
    spec, constructor, kind = Spec.of(system), resolve(system), kind_of(system)
    accepted, anything = catalog.keywords(constructor)
    if kind == "gate":
        config: dict[str, Any] = dict(channels=dim)
    else:
        config = dict(dim=dim)
        config |= dict(heads=heads) if "heads" in accepted or anything else {}
        if kind == "sequence" and ("causal" in accepted or anything):
            config["causal"] = causal
        else:
            require(not causal, f"causal is True, but {spec.name!r} cannot be causal")
    config |= dict(length=length) if length is not None and "length" in accepted else {}
    config |= spec.options
    catalog.bind(spec.name, constructor, config)
    return config


class Workload:
    """A system's layer, and calls of it at any length.

    A class that takes a `length`, the length to expect, is made anew for each; all others once.
    """

    def __init__(self, setting: Setting):
        self.setting, self.kind = settle(setting), kind_of(setting.system)
        self._constructor, self._layers = resolve(setting.system), {}
        self._expects = "length" in catalog.keywords(self._constructor)[0]
        self.layer(1)

    def layer(self, length: int) -> nn.Module:
        """The layer, as it is made for so many positions."""
        key = length if self._expects else None
        if key not in self._layers:
            config = configure(
                self.setting.system, dim=self.setting.dim, heads=self.setting.heads,
                causal=self.setting.causal, length=key,
            )  # fmt: skip
            with torch.random.fork_rng():
                torch.manual_seed(self.setting.seed)
                made = self._constructor(**config)
            self._layers[key] = made.to(device=self.setting.device, dtype=getattr(torch, self.setting.dtype))
        return self._layers[key]

    def draw(self, length: int) -> Tensor:
        """An input of so many positions."""
        shape: tuple[int, ...] = (length, self.setting.dim)
        if self.kind != "sequence":
            height, width = map_size(length)
            shape = (height, width, shape[1]) if self.kind == "grid" else (shape[1], height, width)
        generator = torch.Generator().manual_seed(self.setting.seed + length)
        x = torch.randn(self.setting.batch, *shape, generator=generator)
        return x.to(self.setting.device, getattr(torch, self.setting.dtype))

    def call(self, phase: str, length: int) -> Callable[[], object]:
        """Forward at a length, or (`backward`) with the gradients of the input and of every parameter."""
        layer, x = self.layer(length), self.draw(length)
        if phase == "forward":
            return torch.no_grad()(lambda: layer(x))
        grad = torch.randn_like(x)
        wanted = [x.requires_grad_(), *(weight for weight in layer.parameters() if weight.requires_grad)]
        return lambda: torch.autograd.grad(layer(x), wanted, grad, allow_unused=True)
