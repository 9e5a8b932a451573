"""Where chosen heads look, set by hand: the weights of the last row are those that are given.

The values are what they were, so that a head brings what stands where it is made to look. Merullo et al.,
"Circuit Component Reuse Across Tasks in Transformer Language Models", 2023, repair a circuit in this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.edit.edit import Edit
from regardant.edit.mask_heads import Heads, by_layer
from regardant.host.run import Run
from regardant.host.site import Site


@dataclass(kw_only=True)
class SetAttention(Edit):
    """Query heads `chosen` look, in the last row of every pass, as `weights` [b, n] says (or [1, n], for all
    samples): keys beyond n get nothing. A part `strength` of the row is set, the rest is the head's own."""

    chosen: Heads
    weights_to: Float[Tensor, "b n"]
    strength: float = 1.0

    def __post_init__(self) -> None:
        require(self.layers is None, f"layers is {self.layers}, but chosen already says in which layers")
        require(0 <= self.strength <= 1, f"strength is {self.strength}, but it is from 0 to 1")
        require(
            self.weights_to.ndim == 2 and bool((self.weights_to >= 0).all()),
            f"weights_to is {list(self.weights_to.shape)}, but it is [batch, keys] and never negative",
        )
        self._heads = by_layer(self.chosen)
        require(any(self._heads.values()), "chosen is empty, but at least one head (layer, head) is wanted")
        require(min(self._heads) >= 0, f"chosen has layer {min(self._heads)}, but layers count from 0 here")
        self.layers = list(self._heads)

    def neutral(self) -> bool:
        return self.strength == 0

    def prepare(self, sites: Sequence[Site]) -> None:
        super().prepare(sites)
        for site in sites:
            if self.touches(site):
                top = max(self._heads[site.layer])
                require(
                    min(self._heads[site.layer]) >= 0 and top < site.q_heads,
                    f"chosen has head {top} in {site}, which has query heads 0 to {site.q_heads - 1}",
                )

    def weights(self, weights: Float[Tensor, "b h m n"], site: Site, run: Run) -> Float[Tensor, "b h m n"]:
        batch, keys = weights.shape[0], weights.shape[-1]
        given = self.weights_to.to(weights)
        require(
            given.shape[0] in (1, batch) and given.shape[1] <= keys,
            f"weights_to is {list(given.shape)}, but this pass has {batch} samples and {keys} keys",
        )
        row = torch.nn.functional.pad(given, (0, keys - given.shape[1])).expand(batch, keys)
        weights = weights.clone()
        for head in self._heads[site.layer]:
            weights[:, head, -1] = self.strength * row + (1 - self.strength) * weights[:, head, -1]
        return weights

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        first = torch.tensor([[0.0, 0.5, 0.5]])
        return [
            {"chosen": [(1, 0), (2, 3)], "weights_to": first},
            {"chosen": {0: [1]}, "weights_to": first, "strength": 0.5},
        ]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return {"chosen": [(1, 0)], "weights_to": torch.tensor([[1.0]]), "strength": 0.0}
