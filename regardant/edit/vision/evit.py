"""Token reorganisation on a pretrained vision transformer, without training (Liang et al., "Not All Patches
are What You Need: Expediting Vision Transformers via Token Reorganizations", 2022, arXiv 2202.07800).

In the chosen layers, between attention and feed-forward:

    a = how much the class token attends to each patch, in the mean over heads
    x ← [class, the ⌈rate · n⌉ patches with the largest a, Σ a_i x_i over the others]

as `regardant.backbone.evit` does; on the same weights the two give the same. What was fused stands in the row
of the best of those that leave, and counts as a patch from there on. Deeper layers, and whoever reads their
maps, have the fewer rows; behind the last layer every patch is back at its place, with the state in which it
left. What differs: the feed-forward of a chosen layer itself still sees all its rows. Attention stays fused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.token_choice import FUSED, check_rate, fused, parted
from regardant.edit.edit import Edit
from regardant.host.call import Call
from regardant.host.run import Run
from regardant.host.site import Site

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
"""What the vector that stands before the patches is called, here and there."""


@dataclass
class TokenReorganization(Edit):
    """A share `rate` of the patches goes on behind each of `layers`; None: a quarter, half and three quarters
    of the way, as in the paper. With `fuse=False` the others leave nothing behind."""

    families: ClassVar[tuple[str, ...]] = ("vit", "dinov2", "clip")

    rate: float = 0.7
    fuse: bool = True

    def __post_init__(self) -> None:
        check_rate("rate", self.rate)

    def neutral(self) -> bool:
        return self.rate == 1

    def touches(self, site: Site) -> bool:
        return not site.causal and super().touches(site)

    def prepare(self, sites: Sequence[Site]) -> None:
        super().prepare(sites)
        if self.layers is None:
            depth = 1 + max(site.layer for site in sites if self.touches(site))
            quarters = {depth // 4, depth // 2, 3 * depth // 4}
            self._chosen = {site.name for site in sites if self.touches(site) and site.layer in quarters}
        own = sorted((site for site in sites if self.touches(site)), key=lambda site: -site.layer)
        self._first = set({site.stack: site.name for site in own}.values())

    def read(self, call: Call, heads: Tensor, weights: Tensor | None, site: Site, run: Run) -> None:
        _require_class_token(run.model, self)
        attention = call.maps([0])[:, :, 0, 1:].mean(dim=1)
        kept, others = parted(attention, self.rate)
        rows = torch.cat([kept, others[:, :1]], dim=1) if self.fuse else kept
        held = run.memory(self, site)
        held.update(attention=attention, kept=kept, others=others, rows=rows.sort(dim=1).values)
        held["places"] = run.memory(self)[site.stack] = self._places(held, site, run)

    def _places(self, held: Mapping[str, Tensor], site: Site, run: Run) -> Int[Tensor, "b k"]:
        """Where in the image the rows stood that go on."""
        count = held["attention"].shape[1]
        every = torch.arange(count, device=held["rows"].device).expand(len(held["rows"]), -1)
        places = every if site.name in self._first else run.memory(self)[site.stack]
        if self.fuse and count > held["kept"].shape[1]:
            places = places.scatter(1, held["others"][:, :1], FUSED)
        return places.gather(1, held["rows"])

    def kept(self, run: Run, site: Site) -> Int[Tensor, "b k"]:
        """Which places of the image go on behind a site's layer in the present pass; -1 is what was fused."""
        return run.memory(self, site)["places"]

    def between(self, stream: Float[Tensor, "b m c"], site: Site, run: Run) -> Float[Tensor, "b m c"]:
        held = run.memory(self, site)
        if not self.fuse or held["others"].shape[1] == 0:
            return stream
        found = fused(stream[:, 1:], held["attention"].to(stream.dtype), held["kept"])
        row = 1 + held["others"][:, :1, None].expand(-1, -1, stream.shape[-1])
        return stream.scatter(1, row, found)

    def keep(self, stream: Float[Tensor, "b m c"], site: Site, run: Run) -> Int[Tensor, "b k"] | None:
        held = run.memory(self, site)
        if held["others"].shape[1] == 0:
            return None
        rows = held["rows"]
        return torch.cat([rows.new_zeros(len(rows), 1), 1 + rows], dim=1)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"rate": 0.5, "layers": [1, 2]}, {"rate": 0.3, "fuse": False}]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return {"rate": 1.0}


def _require_class_token(model: nn.Module, edit: Edit) -> None:
    require(
        any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in model.named_parameters()),
        f"{type(model).__name__} has no class token ({', '.join(CLASS_TOKENS)}), by whose attention "
        f"{type(edit).__name__} chooses patches; choose a model that has one",
    )
