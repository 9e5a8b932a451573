"""Grid mixers by name, as makers of what a block or a letter of a stage is made around.

    make = maker("neighborhood", kernel=5)
    make_layers("NNA", {"N": lambda rate: around(make(dim, heads), dim, drop_path=rate), "A": …}, rates)

A mixer's name is its class's or its file's: "axial", "criss-cross", "ccnet", "neighborhood", "in_line", …;
"window" and "whole_map" are the plain ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from regardant.backbone.kit.residual import InTurn, Residual
from regardant.backbone.kit.stage import Block
from regardant.core.by_name import by_name
from regardant.core.errors import require
from regardant.core.grid_attention import WholeMapAttention
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_window import WindowAttention
from regardant.grid.ccnet import CrissCrossAttention

Maker = Callable[[int, int], nn.Module]
"""(dim, heads) → a mixer on maps with channels last."""

PLAIN = {"window": WindowAttention, "whole_map": WholeMapAttention}
"""Mixers of no paper of their own."""
WITH_RESIDUAL = (CrissCrossAttention,)
"""Mixers that add what they hear to what they are given; a block adds it no second time."""


def maker(mixer: str | Maker, **options: Any) -> Maker:
    """What makes the mixer of this name, with these options; anything that makes one is taken as it is."""
    if not isinstance(mixer, str):
        return partial(mixer, **options) if options else mixer
    known = PLAIN.get(mixer.lower().replace("-", "_"))
    found = known or by_name(mixer, "regardant.grid", GridMixer, noun="grid mixer", ending="Attention")
    require(
        found.rank == 2, f"mixer is {mixer!r}, but {found.__name__} is for maps of {found.rank} axes, not 2"
    )
    takes = inspect.signature(found).parameters
    unknown = [name for name in options if name not in takes]
    free = [name for name in takes if name not in ("dim", "heads")]
    require(not unknown, f"{found.__name__} takes no {', '.join(unknown)}; it takes {', '.join(free)}")

    def make(dim: int, heads: int) -> GridMixer:
        # Some mixers have no heads.
        return found(dim, **({"heads": heads} if "heads" in takes else {}), **options)

    return make


def around(
    mixer: nn.Module, dim: int, *, feed_forward: nn.Module | None = None, before: nn.Module | None = None,
    gate: nn.Module | None = None, drop_path: float = 0.0,
) -> nn.Module:  # fmt: skip
    """The common block around a mixer, with a `gate` behind it.

    A mixer that has a residual of its own stands beside the block's norm and shortcut, as its paper has it.
    """
    if isinstance(mixer, WITH_RESIDUAL):
        feed = None if feed_forward is None else Residual(
            feed_forward, dim, norm=nn.LayerNorm(dim), drop_path=drop_path
        )  # fmt: skip
        return InTurn(*(part for part in (before, mixer, gate, feed) if part is not None))
    branch = mixer if gate is None else InTurn(mixer, gate)
    return Block(dim, branch, feed_forward, before=before, drop_path=drop_path)
