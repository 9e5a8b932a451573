"""How large the models and the lengths of a comparison are, by the time and the machine that there are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from regardant.core.errors import require

ACCELERATOR = 24
"""How many cores an accelerator counts as."""


@dataclass(frozen=True)
class Size:
    level: str
    from_seconds: float
    """Of one core, for each model that is trained."""
    dim: int
    heads: int
    layers: int
    lengths: tuple[int, ...]
    positions: tuple[int, ...]
    seeds: int
    repeat: float
    """Seconds of repetitions a cost."""
    longest: float
    """Seconds of one call; what might take longer is left out."""

    def asked(self, *, dim: int | None, heads: int | None, layers: int | None) -> Self:
        """The same with what was asked for instead."""
        found = replace(self, dim=dim or self.dim, heads=heads or self.heads, layers=layers or self.layers)
        require(
            found.dim % found.heads == 0,
            f"heads is {found.heads}, but dim={found.dim} is not a multiple of it",
        )
        return found


SIZES = (
    Size("small", 0, 64, 2, 2, (512, 1024, 2048, 4096), (100, 1000), 3, 0.08, 2.0),
    Size("medium", 150, 64, 4, 2, (512, 1024, 2048, 4096, 8192, 16384), (100, 1000, 10000), 3, 0.3, 4.0),
    Size(
        "large", 3000, 128, 4, 4, (1024, 2048, 4096, 8192, 16384, 32768, 65536), (100, 1000, 10000), 5,
        0.5, 10.0,
    ),
)  # fmt: skip


def size_for(budget: float, slots: int, device: str, *, models: int) -> Size:
    """The largest size that so many seconds are enough for, to train so many models."""
    there_is = budget * (slots if device == "cpu" else ACCELERATOR) / max(models, 1)
    return max((size for size in SIZES if size.from_seconds <= there_is), key=lambda size: size.from_seconds)
