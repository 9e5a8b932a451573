"""What is put through a suite: how it is made for a configuration, and what it has the means for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from regardant.contract.drawing import LENGTHS, PATTERNS, Case, Refused, Use
from regardant.contract.report import Broken, Skip
from regardant.core.supports import Supports


@dataclass(frozen=True)
class Inputs:
    """What a layer is called with."""

    x: Tensor
    context: Tensor | None = None
    padding: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same inputs with `change` applied to each tensor."""
        parts = (self.x, self.context, self.padding)
        return Inputs(*(None if part is None else change(part) for part in parts))

    @property
    def keys(self) -> Tensor:
        """Where the keys come from: the context where there is one."""
        return self.x if self.context is None else self.context


@contextmanager
def blame(deed: str) -> Iterator[None]:
    """Turn whatever a layer raises into a verdict: it is anybody's code, so anything may come."""
    try:
        yield
    except (Broken, Skip, Refused):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise Broken(f"{deed} raised {type(error).__name__}: {said[:200]}") from error


@dataclass
class Subject:
    """A layer with everything that the suites must know to make it and to call it."""

    name: str
    kind: str
    """sequence, grid, gate or rule."""
    make: Callable[[Mapping[str, Any]], nn.Module]
    """The layer for a configuration in our words: dim, heads, causal, kv_heads, context_dim, …"""
    takes: frozenset[str] = frozenset()
    """Which of these words it takes. What it does not take is as it comes."""
    ours: bool = False
    supports: Supports | None = None
    uses: list[Use] = field(default_factory=lambda: [Use(None)])
    width: int | None = None
    """The width of its input where that cannot be chosen."""
    heads: int | None = None
    """The heads where they cannot be chosen but are known."""
    context_width: int | None = None
    call: Callable[[nn.Module, Inputs], Tensor] | None = None
    """How `forward` is called."""
    pads: bool = False
    has_reference: bool = False
    has_step: bool = False
    remakes: bool = True
    """Whether a fresh layer can be made (an instance can only be copied)."""
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-9
    sizes: list[tuple[int, ...]] = field(default_factory=lambda: [(length,) for length in LENGTHS])
    drawn_sizes: tuple[int, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    """Lengths at which `forward` does not run, and why."""
    positions: tuple[str, ...] = ("none",)
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The system's own options and the values to try; None is the one that it has by default."""

    metered: dict[Any, Any] = field(default_factory=dict)
    """What was metered once in this suite and is wanted again."""

    @property
    def exempt(self) -> Mapping[str, str]:
        return {} if self.supports is None else self.supports.exempt

    @property
    def plain_heads(self) -> int | None:
        return self.head_counts[0]

    @property
    def head_counts(self) -> tuple[int | None, ...]:
        if "heads" not in self.takes:
            return (self.heads,)
        counts = (2, 1, 4, 3)
        return tuple(count for count in counts if self.width is None or self.width % count == 0)

    @property
    def varies_kv_heads(self) -> bool:
        free = {"heads", "kv_heads"} <= self.takes and 4 in self.head_counts
        return free and (self.supports is None or self.supports.grouped)

    def kv_head_counts(self, heads: int | None) -> list[int]:
        if heads is None or not self.varies_kv_heads:
            return []
        return [count for count in range(1, heads) if heads % count == 0]

    @property
    def head_dims(self) -> tuple[int, ...]:
        return (8, 4, 10) if "dim" in self.takes else (8,)

    @property
    def patterns(self) -> tuple[str, ...]:
        patterned = "pattern" in self.takes and (self.supports is None or self.supports.pattern)
        return tuple(PATTERNS) if patterned else ("none",)

    @property
    def small_sizes(self) -> list[tuple[int, ...]]:
        """The sizes at which a property that knows no special length is tried."""
        return [size for size in self.sizes if 16 < prod(size) < 100] or self.sizes[:1]

    def takes_size(self, size: tuple[int, ...]) -> bool:
        """Whether this size may be tried: all of them, unless some lengths do not run."""
        return not self.refused or size[0] in self.drawn_sizes

    def dim(self, case: Case) -> int:
        if self.width is not None:
            return self.width
        return (case.heads or 2) * case.head_dim

    def configuration(self, case: Case) -> dict[str, Any]:
        """The case in the words that this subject takes."""
        words = {
            "dim": self.dim(case),
            "heads": case.heads,
            "causal": case.causal,
            "kv_heads": case.kv_heads,
            "context_dim": self.dim(case) + 4 if case.across else None,
            "pattern": PATTERNS[case.pattern](case.heads or 1),
            "position": None if case.position == "none" else case.position,
            "max_length": 8192 if case.position == "learned" else None,
        }
        given = {name: value for name, value in words.items() if name in self.takes and value is not None}
        return given | dict(case.options)

    def build(self, case: Case, *, dtype: torch.dtype | None = None, seed: int | None = None) -> nn.Module:
        """A layer for this case, in eval mode, with no parameter left at a constant."""
        seed = case.seed if seed is None else seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                with blame("the constructor"):
                    layer = self.make(self.configuration(case))
            except Broken as broken:
                if case.options and isinstance(broken.__cause__, ValueError):
                    raise Refused(str(broken)) from broken
                raise
        return with_random_constants(layer, seed=seed).to(dtype or self.dtype).eval()

    def inputs(self, case: Case, *, dtype: torch.dtype | None = None, seed: int | None = None) -> Inputs:
        """Random inputs for this case, without padding."""
        generator = torch.Generator().manual_seed(1000 + (case.seed if seed is None else seed))
        dim, kind = self.dim(case), dtype or self.dtype
        shape = (case.batch, dim, *case.size) if self.kind == "gate" else (case.batch, *case.size, dim)
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(kind)
        if not case.across:
            return Inputs(x)
        width = self.context_width or (dim + 4 if "context_dim" in self.takes else dim)
        context = torch.randn(case.batch, case.keys, width, generator=generator, dtype=torch.float64)
        return Inputs(x, context.to(kind))

    def forward(self, layer: nn.Module, inputs: Inputs) -> Tensor:
        with blame("forward"):
            y = self.call(layer, inputs)
        y = y[0] if isinstance(y, tuple | list) else y
        if not isinstance(y, Tensor) or y.shape != inputs.x.shape:
            found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise Broken(f"forward turned {tuple(inputs.x.shape)} into {found}; the shape should stay")
        return y

    def reference(self, layer: nn.Module, inputs: Inputs) -> Tensor:
        if not self.has_reference:
            raise Skip("it has no reference")
        given = {
            name: value for name in ("context", "padding") if (value := getattr(inputs, name)) is not None
        }
        with blame("reference"):
            return layer.reference(inputs.x, **given)


def with_random_constants(layer: Any, *, seed: int) -> Any:
    """The layer with the parameters that were one constant made random.

    A gate that starts at zero would hide what is behind it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.is_floating_point() and (parameter == parameter.flatten()[0]).all():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return layer


def copied(instance: nn.Module) -> Callable[[Mapping[str, Any]], nn.Module]:
    """A maker that copies an instance, which is never touched itself."""
    return lambda _: deepcopy(instance)


def with_what_is_given(layer: nn.Module, inputs: Inputs) -> Tensor:
    """Call a layer whose `forward` has our words for its arguments."""
    given = {name: value for name in ("context", "padding") if (value := getattr(inputs, name)) is not None}
    return layer(inputs.x, **given)
