"""Head ablation: the outputs of chosen query heads, scaled towards nothing.

What is masked is what a head gives, before the output projection. Its keys and values stay, since under
grouped attention other query heads read them too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.edit.edit import Edit
from regardant.host.run import Run
from regardant.host.site import Site

Heads = Mapping[int, Collection[int]] | Iterable[tuple[int, int]]


@dataclass(kw_only=True)
class MaskHeads(Edit):
    """Silence query heads: `chosen` is {layer: heads} or pairs (layer, head), as `HeadMap.top` gives them.

    `strength` 1 removes them, 0 changes nothing.
    """

    chosen: Heads
    strength: float = 1.0

    def __post_init__(self) -> None:
        require(self.layers is None, f"layers is {self.layers}, but chosen already says in which layers")
        require(0 <= self.strength <= 1, f"strength is {self.strength}, but it is from 0 to 1")
        self._chosen_heads = by_layer(self.chosen)
        require(
            any(self._chosen_heads.values()), "chosen is empty, but at least one head (layer, head) is wanted"
        )
        self.layers = list(self._chosen_heads)

    def neutral(self) -> bool:
        return self.strength == 0

    def prepare(self, sites: Sequence[Site]) -> None:
        super().prepare(sites)
        touched = [site for site in sites if self.touches(site)]
        count = max(site.layer for site in touched) + 1
        count = max([count, *(site.layer + 1 for site in sites if site.stack == touched[0].stack)])
        wanted = {layer + count if layer < 0 else layer: own for layer, own in self._chosen_heads.items()}
        self._silent: dict[str, list[int]] = {}
        for site in touched:
            own = wanted[site.layer]
            strange = sorted(head for head in own if not 0 <= head < site.q_heads)
            require(
                not strange,
                f"chosen has head {strange[0] if strange else ''} in {site}, which has query heads 0 to "
                f"{site.q_heads - 1}",
            )
            self._silent[site.name] = sorted(own)

    def heads(self, heads: Float[Tensor, "b h m e"], site: Site, run: Run) -> Float[Tensor, "b h m e"]:
        silent = torch.tensor(self._silent[site.name], device=heads.device)
        if self.strength == 1:
            return heads.index_fill(1, silent, 0)
        gain = torch.ones(heads.shape[1], dtype=heads.dtype, device=heads.device)
        gain[silent] = 1 - self.strength
        return heads * gain[:, None, None]

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [
            {"chosen": [(1, 0), (1, 3), (2, 2)]},
            {"chosen": {0: [1]}, "strength": 0.5},
            {"chosen": {-1: [0, 1, 2, 3]}},
        ]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return {"chosen": {1: [0, 1]}, "strength": 0.0}


def by_layer(chosen: Heads) -> dict[int, set[int]]:
    """Heads by their layer, from pairs or from a mapping."""
    if isinstance(chosen, Mapping):
        return {int(layer): {int(head) for head in own} for layer, own in chosen.items()}
    found: dict[int, set[int]] = {}
    for layer, head in chosen:
        found.setdefault(int(layer), set()).add(int(head))
    return found
