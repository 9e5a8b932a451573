"""A tape: what attention does while a model runs, reduced as it goes.

    last = Reading(layers=[3, 17], heads=[0, 4, 8], rows=slice(-16, None))
    with Tape(model, entropy=Reading(reduce=entropy), last=last) as tape:
        model(ids)
    tape.head_map("entropy")        # layers × heads
    tape["last"][3]                 # the maps of layer 3: a tensor [b, 3, 16, n] for every pass

The forward stays on its fused path: the rows and heads that are asked for are computed once more from q and
k, in tiles of rows, so that the memory is bounded by what is kept and not by the length squared. Where an
edit has written the weights out, those are read; where something else than softmax(q·k) v was computed,
reading refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.errors import require, unknown
from regardant.host.call import Call
from regardant.host.run import Run
from regardant.host.seam import Seam
from regardant.host.site import Site
from regardant.lens.head_map import HeadMap

COPIES = 4
"""Tensors of a tile's size that are alive at once: scores, the mask, weights, and what a reduction makes."""


@dataclass(frozen=True)
class View:
    """What a reduction is told beside the weights [b, h, m, n] of some query rows."""

    site: Site
    run: Run
    places: Int[Tensor, "m"]
    """The queries' own places among the keys."""
    visible: Bool[Tensor, "#b #h m n"]
    first: Int[Tensor, "b"]
    """The place of the first key that is no padding."""

    def distance(self, keys: int) -> Int[Tensor, "m n"]:
        """How far each key lies behind its query; negative ahead of it."""
        return self.places[:, None] - torch.arange(keys, device=self.places.device)


Reduction = Callable[[Float[Tensor, "b h m n"], View], Tensor]
"""Weights of some rows to something for each row: [b, h, m, …]. Rows come in tiles, each row once."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What to read, and where: `layers`, query `heads` (of every layer, or {layer: heads}) and query `rows`
    of each pass; None is all. Without `reduce` the maps themselves are kept.

    `keep` is "rows", for what each row gave, or "mean", for its mean over rows and samples, without padding.
    """

    reduce: Reduction | None = None
    layers: Sequence[int] | None = None
    heads: Sequence[int] | Mapping[int, Sequence[int]] | None = None
    rows: slice | Sequence[int] | None = None
    stack: str | None = None
    cross: bool = False
    keep: Literal["rows", "mean"] = "rows"
    gradients: bool = False
    """Whether what is kept stays in the graph: for losses over maps."""

    def __post_init__(self) -> None:
        if self.keep not in ("rows", "mean"):
            raise unknown("keep", self.keep, ["rows", "mean"])
        require(
            self.keep == "rows" or self.reduce is not None,
            'keep is "mean", but maps of different lengths have no mean: give a reduce',
        )

    def heads_at(self, site: Site) -> list[int] | None:
        own = self.heads.get(site.layer) if isinstance(self.heads, Mapping) else self.heads
        return None if own is None else [head + site.q_heads if head < 0 else head for head in own]


class Tape:
    """Named readings of a model, as a context manager. Raises where the maps cannot be had, and where a
    reading never met an attention."""

    def __init__(self, model: nn.Module, *, room: int = 32 * 2**20, **readings: Reading) -> None:
        require(len(readings) > 0, "readings is empty, but a tape reads at least one thing: name=Reading(…)")
        require(room > 0, f"room is {room}, but it is the bytes that a tile of maps may take")
        self.room, self.readings = room, readings
        self._seam = Seam.of(model)
        self._where = {name: _places_of(each, name, self._seam.host.sites) for name, each in readings.items()}
        self.forget()

    def forget(self) -> None:
        """Drop what was read so far."""
        self._kept: dict[str, dict[str, list[Tensor]]] = {name: {} for name in self.readings}
        self._sums: dict[str, dict[str, tuple[Tensor, float]]] = {name: {} for name in self.readings}
        self._real: dict[str, dict[str, list[Tensor]]] = {name: {} for name in self.readings}
        self._sure: set[str] = set()

    def __enter__(self) -> Self:
        self._seam = Seam.of(self._seam.model)
        self._seam.enter([self])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._seam.leave([self])
        if error is None:
            for name in self.readings:
                require(
                    bool(self._kept[name] or self._sums[name]),
                    f"{name} read nothing: no pass of the model reached an attention that it is about",
                )

    def stages(self, site: Site) -> frozenset[str]:
        asked = any(site.name in sites for sites in self._where.values())
        return frozenset(["read"]) if asked else frozenset()

    def read(
        self, call: Call, heads: Float[Tensor, "b h m e"], weights: Tensor | None, site: Site, run: Run
    ) -> None:
        for actor in self._seam.actors:
            replaced = "attend" in actor.stages(site) and actor.replaces(call, run)
            require(
                not replaced,
                f"{type(actor).__name__} replaces the attention of {site}: there are no maps to read",
            )
        if weights is None:
            self._compare_once(call, heads, site)
        for name, reading in self.readings.items():
            if site.name in self._where[name]:
                with torch.set_grad_enabled(reading.gradients and torch.is_grad_enabled()):
                    self._take(name, reading, call, weights, run)

    def _take(self, name: str, reading: Reading, call: Call, weights: Tensor | None, run: Run) -> None:
        site, device = call.site, call.q.device
        rows = torch.arange(call.queries, device=device)
        if reading.rows is not None:
            chosen = reading.rows if isinstance(reading.rows, slice) else list(reading.rows)
            require(
                isinstance(chosen, slice) or all(-call.queries <= row < call.queries for row in chosen),
                f"rows is {chosen}, but this pass has {call.queries} queries",
            )
            rows = rows[chosen]
        heads = reading.heads_at(site)
        first = run.first_real()
        first = torch.zeros(call.batch, dtype=torch.int64) if first is None or site.cross else first
        first = (first.to(device) - call.first_key).clamp(min=0)
        real = _real(run, call)[:, rows]
        count = call.site.q_heads if heads is None else len(heads)
        tile = max(1, self.room // (COPIES * 4 * max(1, call.batch * count * call.keys)))
        found = []
        for part in rows.split(tile):
            # A whole range is read as a slice: no copy of q.
            whole = len(part) == int(part[-1]) + 1 - int(part[0])
            part_rows = slice(int(part[0]), int(part[-1]) + 1) if whole else part.tolist()
            seen = call.maps(part_rows, heads) if weights is None else _chosen(weights, part_rows, heads)
            if reading.reduce is None:
                found.append(seen)
                continue
            visible = call.visible(part_rows)
            if heads is not None and visible.shape[1] > 1:
                visible = visible[:, heads]
            value = reading.reduce(seen, View(site, run, call.places()[part], visible, first))
            require(
                value.shape[:3] == seen.shape[:3],
                f"the reduction of {name} gives {list(value.shape)}, but for weights {list(seen.shape)} it "
                f"is {list(seen.shape[:3])} and what each row has",
            )
            found.append(value)
        value = torch.cat(found, dim=2) if len(found) > 1 else found[0]
        value = value if reading.gradients else value.detach()
        if reading.keep == "rows":
            self._kept[name].setdefault(site.name, []).append(value)
            self._real[name].setdefault(site.name, []).append(real)
            return
        total, rows_so_far = self._sums[name].get(site.name, (0.0, 0.0))
        added = torch.einsum("bhm...,bm->h...", value.double(), real.double())
        self._sums[name][site.name] = (total + added, rows_so_far + float(real.sum()))

    def __getitem__(self, name: str) -> dict[int, list[Tensor]]:
        """By layer: what each pass gave, [b, heads, rows, …]."""
        self._known(name)
        require(self.readings[name].keep == "rows", f"{name} keeps its mean alone: ask tape.mean({name!r})")
        return {site.layer: self._kept[name][site.name] for site in self._met(name, self._kept)}

    def mean(self, name: str) -> dict[int, Tensor]:
        """By layer: the mean over rows and samples, padding left out: [heads, …]."""
        self._known(name)
        if self.readings[name].keep == "mean":
            sums = self._sums[name]
            return {s.layer: sums[s.name][0] / max(sums[s.name][1], 1) for s in self._met(name, self._sums)}
        require(
            self.readings[name].reduce is not None, f"{name} keeps maps, which have no mean: give a reduce"
        )
        found = {}
        for site in self._met(name, self._kept):
            pairs = list(zip(self._kept[name][site.name], self._real[name][site.name]))
            total = sum(torch.einsum("bhm...,bm->h...", each.double(), real.double()) for each, real in pairs)
            found[site.layer] = total / max(sum(float(real.sum()) for _, real in pairs), 1)
        return found

    def head_map(self, name: str, *, title: str | None = None) -> HeadMap:
        """Layers × heads of the mean of a reading that gives one number a row. NaN where it did not read."""
        found = self.mean(name)
        require(
            all(each.ndim == 1 for each in found.values()),
            f"{name} gives {list(next(iter(found.values())).shape[1:])} a row, but a head map has one number",
        )
        sites = self._where[name].values()
        count = max(site.layer for site in self._seam.host.sites if site.stack == next(iter(sites)).stack) + 1
        values = torch.full((count, max(site.q_heads for site in sites)), torch.nan, dtype=torch.float64)
        for site in sites:
            if site.layer in found:
                heads = self.readings[name].heads_at(site)
                values[site.layer, list(range(site.q_heads)) if heads is None else heads] = found[
                    site.layer
                ].cpu()
        return HeadMap(values, name if title is None else title)

    def _met(self, name: str, kept: dict[str, dict]) -> Iterator[Site]:
        return (site for site in self._where[name].values() if site.name in kept[name])

    def _known(self, name: str) -> None:
        if name not in self.readings:
            raise unknown("reading", name, sorted(self.readings))

    def _compare_once(self, call: Call, heads: Tensor, site: Site) -> None:
        """Are the maps that are computed here those that the heads were computed by? Asked once a class."""
        kind = type(site.module).__name__
        if kind in self._sure or call.dropout:
            return
        gap, other = call.unlike(heads, last=4)
        require(
            not other,
            f"{kind} at {site.name} computes more than softmax(q·k) v under a mask: its maps cannot be read "
            f"(their heads differ by {gap:.2g})",
        )
        self._sure.add(kind)


def _places_of(reading: Reading, name: str, sites: Sequence[Site]) -> dict[str, Site]:
    """The sites that a reading is about, refused early where there are none."""
    stacks = sorted({site.stack for site in sites})
    if reading.stack is not None and reading.stack not in stacks:
        raise unknown("stack", reading.stack, stacks)
    if reading.stack is None:
        require(
            len(stacks) == 1,
            f"the model has the stacks {', '.join(stacks)}: say of which {name} is, by stack=",
        )
    own = [s for s in sites if s.cross == reading.cross and reading.stack in (None, s.stack)]
    count = max((site.layer for site in own), default=-1) + 1
    wanted = None
    asked = reading.layers
    if asked is None and isinstance(reading.heads, Mapping):
        asked = list(reading.heads)
    if asked is not None:
        wanted = {layer + count if layer < 0 else layer for layer in asked}
        strange = sorted(wanted - {site.layer for site in own})
        require(
            not strange, f"layers of {name} has {strange[:1]}, but the attention layers go to {count - 1}"
        )
    chosen = {site.name: site for site in own if wanted is None or site.layer in wanted}
    require(bool(chosen), f"{name} is about no attention of this model (cross={reading.cross})")
    for site in chosen.values():
        for head in reading.heads_at(site) or ():
            require(
                0 <= head < site.q_heads,
                f"heads of {name} has {head}, but {site} has query heads 0 to {site.q_heads - 1}",
            )
    return chosen


def _chosen(weights: Tensor, rows: slice | list[int], heads: list[int] | None) -> Tensor:
    """Rows and heads of weights that were written out."""
    weights = weights[:, :, rows]
    return weights if heads is None else weights[:, heads]


def _real(run: Run, call: Call) -> Bool[Tensor, "b m"]:
    """Which queries of this pass are no padding."""
    device = call.q.device
    if run.real is None or call.site.cross or run.length - run.past != call.queries:
        return torch.ones(call.batch, call.queries, dtype=torch.bool, device=device)
    real = run.real[:, run.past :].to(device)
    return real.expand(call.batch, -1)
