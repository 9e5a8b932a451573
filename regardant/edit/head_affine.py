"""A scale and an offset of what chosen query heads give, and the same folded into the output projection.

    z ← (1 + scale) ∘ z + offset        for the output z of a head, at every token

Both are one vector a head. `fold` puts them into the weights, after which the model is edited at no cost:
with W the columns of the output projection that read this head, b += W·offset and W ← W·diag(1 + scale).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.product import is_linear
from regardant.edit.edit import Edit
from regardant.host.host import Host, host_of
from regardant.host.run import Run
from regardant.host.seam import HELD
from regardant.host.site import Site

Vectors = Mapping[tuple[int, int], Float[Tensor, "e"]]
"""(layer, query head) → a vector as wide as what the head gives."""


@dataclass(kw_only=True)
class HeadAffine(Edit):
    """`scales` and `offsets` of query heads, by (layer, head). Gradients go through to them."""

    scales: Vectors = field(default_factory=dict)
    offsets: Vectors = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.layers is None, f"layers is {self.layers}, but scales and offsets say in which layers")
        for name in ("scales", "offsets"):
            for at, vector in getattr(self, name).items():
                require(
                    isinstance(at, tuple)
                    and len(at) == 2
                    and isinstance(vector, Tensor)
                    and vector.ndim == 1,
                    f"{name} holds {at!r}, but (layer, head) and a vector are wanted",
                )
        self._by_site: dict[str, dict[str, list[tuple[int, Tensor]]]] = {}
        if self.scales or self.offsets:
            self.layers = sorted({layer for layer, _ in (*self.scales, *self.offsets)})

    def neutral(self) -> bool:
        return not self.scales and not self.offsets

    def prepare(self, sites: Sequence[Site]) -> None:
        super().prepare(sites)
        own = [site for site in sites if site.cross == self.cross and self.stack in (None, site.stack)]
        count = max(site.layer for site in own) + 1
        self._by_site = {}
        for site in (site for site in own if self.touches(site)):
            for name in ("scales", "offsets"):
                for (layer, head), vector in getattr(self, name).items():
                    if layer % count != site.layer:
                        continue
                    require(
                        0 <= head < site.q_heads,
                        f"{name} has head {head} in {site}, which has query heads 0 to {site.q_heads - 1}",
                    )
                    require(
                        len(vector) == site.head_dim,
                        f"{name} of head {head} in {site} has {len(vector)} numbers, but the head gives "
                        f"{site.head_dim}",
                    )
                    held = self._by_site.setdefault(site.name, {"scales": [], "offsets": []})
                    require(
                        all(head != other for other, _ in held[name]),
                        f"{name} names head {head} in {site} twice, by its layer from the front and from the "
                        "end",
                    )
                    held[name].append((head, vector))

    def heads(self, heads: Float[Tensor, "b h m e"], site: Site, run: Run) -> Float[Tensor, "b h m e"]:
        held = self._by_site[site.name]
        if held["scales"]:
            heads = heads * (1 + _rows(held["scales"], heads))
        return heads + _rows(held["offsets"], heads) if held["offsets"] else heads

    @torch.no_grad()
    def fold(self, model: nn.Module) -> Folded:
        """Put the edit into the model's weights; `undo()` of what comes back takes it out, exactly."""
        at_work = getattr(model.__dict__.get(HELD), "actors", [])
        require(all(each is not self for each in at_work), "the edit is at work on the model: leave it first")
        host = host_of(model)
        self.prepare(host.sites)
        return Folded(
            [
                _Change.of(host, site, self._by_site[site.name])
                for site in host.sites
                if site.name in self._by_site
            ]
        )

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        wave = torch.linspace(-1, 1, 16)
        return [
            dict(scales={(1, 0): wave}, offsets={(1, 0): wave.cos(), (2, 3): wave}),
            dict(offsets={(-1, 1): wave, (0, 2): -wave}),
        ]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return dict(scales={}, offsets={})


def _rows(held: list[tuple[int, Tensor]], heads: Tensor) -> Float[Tensor, "h 1 e"]:
    """The vectors in their heads' rows, zeros elsewhere."""
    index = torch.tensor([head for head, _ in held], device=heads.device)
    vectors = torch.stack([vector for _, vector in held]).to(heads)
    return heads.new_zeros(heads.shape[1], heads.shape[3]).index_add(0, index, vectors)[:, None]


class Folded:
    """What a fold changed. As a context manager it is undone at the end."""

    def __init__(self, changes: list[_Change]):
        self._changes = changes

    def undo(self) -> None:
        """Weights and biases as they were, to the last bit."""
        for change in self._changes:
            change.undo()
        self._changes = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


@dataclass
class _Change:
    """One output projection: what it was."""

    layer: nn.Module
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, host: Host, site: Site, held: dict[str, list[tuple[int, Tensor]]]) -> _Change:
        layer = host.output_projection(site)
        across = type(layer).__name__ == "Conv1D"  # keeps its weight [inputs, outputs]
        require(
            across or is_linear(layer),
            f"the output projection of {site} is {type(layer).__name__}, but only a plain linear layer's "
            "weights can take an edit in",
        )
        change = cls(
            layer, layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()
        )
        weight = layer.weight.T if across else layer.weight
        columns = weight.unflatten(1, (site.q_heads, site.head_dim))
        if held["offsets"] and layer.bias is None:
            layer.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=False)
        # The offset comes behind the scale, so it meets the columns as they were.
        for head, vector in held["offsets"]:
            layer.bias += columns[:, head] @ vector.detach().to(weight)
        for head, vector in held["scales"]:
            columns[:, head] *= 1 + vector.detach().to(weight)
        return change

    @torch.no_grad()
    def undo(self) -> None:
        self.layer.weight.copy_(self.weight)
        if self.bias is None:
            self.layer.bias = None
        else:
            self.layer.bias.copy_(self.bias)
