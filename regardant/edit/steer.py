"""Steering: a direction added to the residual stream, at chosen layers and tokens.

x ← x + strength · direction        as the stream leaves the layer's block
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.edit.edit import Edit
from regardant.host.run import Run
from regardant.host.site import Site


@dataclass(kw_only=True)
class Steer(Edit):
    """`direction` is a vector as wide as the stream, or one a layer: {layer: vector}.

    `roles` names the tokens ("system", "prompt", "image", "generated") that are steered; None is all. Roles
    come with `apply(model, edit, roles=…)`.
    """

    direction: Float[Tensor, "c"] | Mapping[int, Float[Tensor, "c"]]
    strength: float = 1.0
    roles: Collection[str] | None = None

    def __post_init__(self) -> None:
        by_layer = isinstance(self.direction, Mapping)
        require(
            not (by_layer and self.layers is not None),
            f"layers is {self.layers}, but direction already says in which layers",
        )
        for vector in self.direction.values() if by_layer else (self.direction,):
            require(
                isinstance(vector, Tensor) and vector.ndim == 1,
                "direction holds something other than a vector, but a tensor [width of the stream] is wanted",
            )
        require(
            self.roles is None or (not isinstance(self.roles, str) and len(self.roles) > 0),
            f"roles is {self.roles!r}, but a list of roles is wanted, or None for all tokens",
        )
        if by_layer:
            require(len(self.direction) > 0, "direction is empty, but at least one layer's vector is wanted")
            self.layers = list(self.direction)

    def neutral(self) -> bool:
        return self.strength == 0

    def prepare(self, sites: Sequence[Site]) -> None:
        super().prepare(sites)
        own = [site for site in sites if self.touches(site)]
        count = max(site.layer for site in sites if site.stack == own[0].stack) + 1
        self._by_site: dict[str, Tensor] = {}
        for site in own:
            vector = self.direction
            if isinstance(vector, Mapping):
                vector = next(each for layer, each in vector.items() if layer % count == site.layer)
            width = getattr(getattr(site.module, "config", None), "hidden_size", None)
            require(
                width is None or len(vector) == width,
                f"direction has {len(vector)} numbers, but the stream at {site} is {width} wide",
            )
            self._by_site[site.name] = vector

    def residual(self, stream: Float[Tensor, "b m c"], site: Site, run: Run) -> Float[Tensor, "b m c"]:
        added = self.strength * self._by_site[site.name].to(stream)
        if self.roles is None:
            return stream + added
        masks = [run.role(name)[:, run.past :] for name in self.roles]
        chosen = torch.stack(masks).any(0).to(stream.device)
        return torch.where(chosen[..., None], stream + added, stream)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        wave = torch.linspace(-2, 2, 64)
        return [dict(direction=wave, layers=[1, 2], strength=1.5), dict(direction={0: wave, -1: -wave})]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return dict(direction=torch.linspace(-2, 2, 64), strength=0.0)


@torch.no_grad()
def mean_difference(
    model: torch.nn.Module,
    towards: Tensor,
    away: Tensor,
    *,
    layers: Collection[int],
    stack: str | None = None,
) -> dict[int, Float[Tensor, "c"]]:
    """For each layer the mean of the stream at the last token of texts `towards` [b, n], less that of texts
    `away` [b', n']: a direction to steer by. Texts of one side are of one length."""
    from regardant.host.seam import Seam

    found = []
    for ids in (towards, away):
        require(ids.ndim == 2, f"texts are {list(ids.shape)}, but token ids [texts, length] are wanted")
        reader = _LastTokens(layers=layers, stack=stack)
        seam = Seam.of(model)
        reader.prepare(seam.host.sites)
        seam.enter([reader])
        try:
            model(input_ids=ids.to(next(model.parameters()).device))
        finally:
            Seam.of(model).leave([reader])
        found.append(reader.means)
    return {layer: found[0][layer] - found[1][layer] for layer in found[0]}


@dataclass(kw_only=True)
class _LastTokens(Edit):
    """Looks at the stream and leaves it as it is."""

    def prepare(self, sites: Sequence[Site]) -> None:
        super().prepare(sites)
        self.means: dict[int, Tensor] = {}

    def residual(self, stream, site, run):
        self.means[site.layer] = stream[:, -1].mean(0)
        return stream
