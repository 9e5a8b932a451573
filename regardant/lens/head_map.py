"""A number for every head of a model: layers × query heads, to sort, to list and to look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.lens.agreement import spearman

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#1f2430", "#8a8f9c"
SEQUENTIAL = ("#f6f4ef", "#f3d9b1", "#ec9f6b", "#d1495b", "#7b2d5e", "#2d1638")
DIVERGING = ("#14507a", "#5aa0c8", "#d8e6ec", "#f7f5f0", "#f3d6c3", "#d9704f", "#8c1f2f")


@dataclass(frozen=True)
class HeadMap:
    """Values [layers, heads]; NaN where a head was not measured or a layer has fewer."""

    values: Float[Tensor, "l h"]
    title: str = "heads"

    def __post_init__(self) -> None:
        require(
            self.values.ndim == 2, f"values is {list(self.values.shape)}, but a head map is [layers, heads]"
        )

    def __getitem__(self, head: tuple[int, int]) -> float:
        return float(self.values[head])

    @property
    def layers(self) -> int:
        return self.values.shape[0]

    @property
    def heads(self) -> int:
        return self.values.shape[1]

    @property
    def measured(self) -> int:
        """How many heads have a value."""
        return int((~self.values.isnan()).sum())

    def top(self, count: int = 10) -> list[tuple[int, int]]:
        """The heads of highest value, highest first, as (layer, head): what `MaskHeads` takes."""
        require(1 <= count <= self.measured, f"count is {count}, but {self.measured} heads were measured")
        order = self.values.flatten().nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
        return [divmod(int(place), self.heads) for place in order[:count]]

    def above(self, threshold: float) -> list[tuple[int, int]]:
        """The heads above a threshold, highest first."""
        count = int((self.values > threshold).sum())
        return self.top(count) if count else []

    def share_above(self, threshold: float) -> float:
        """The part of the measured heads that is above a threshold."""
        return len(self.above(threshold)) / self.measured

    def draw(
        self, count: int, *, without: Collection[tuple[int, int]] = (), generator: torch.Generator
    ) -> list[tuple[int, int]]:
        """Random measured heads, none of those in `without`: the control of an ablation."""
        places = (~self.values.isnan()).nonzero().tolist()
        left = [(layer, head) for layer, head in places if (layer, head) not in set(without)]
        require(count <= len(left), f"count is {count}, but {len(left)} heads are left to draw from")
        order = torch.randperm(len(left), generator=generator)[:count]
        return [left[place] for place in order.tolist()]

    def spearman(self, other: HeadMap) -> float:
        """Whether two maps rank the heads alike."""
        require(
            self.values.shape == other.values.shape,
            f"the maps are {list(self.values.shape)} and {list(other.values.shape)}, but are of one model",
        )
        both = ~(self.values.isnan() | other.values.isnan())
        return float(spearman(self.values[both], other.values[both]))

    def rows(self) -> list[dict[str, Any]]:
        """A row for every measured head, highest first."""
        return [
            {"layer": layer, "head": head, "value": self[layer, head]}
            for layer, head in self.top(self.measured)
        ]

    def frame(self) -> Any:
        """The rows as a pandas DataFrame, or as they are where pandas is not installed."""
        rows = self.rows()
        if find_spec("pandas") is None:
            return rows
        import pandas

        return pandas.DataFrame(rows)

    def plot(
        self, path: str | Path | None = None, *, mark: int = 10, title: str | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Figure:  # fmt: skip
        """A heat map, the `mark` highest heads ringed, beside what every layer holds and how values fall
        off. Written to `path` (png, svg, pdf) if given; the figure is returned and shows in a notebook.

        `names` replaces the words on it: "value", "layer", "head".
        """
        require(
            find_spec("matplotlib") is not None,
            'plots need matplotlib, which is not installed: pip install "regardant[lens]"',
        )
        words = {"value": self.title, "layer": "layer", "head": "query head", **(names or {})}
        return _plotted(self, path, min(mark, self.measured), title, words)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows of a head map."""
        if find_spec("matplotlib") is None:
            return None
        picture = BytesIO()
        self.plot().savefig(picture, dpi=110)
        return picture.getvalue()


def _plotted(
    found: HeadMap, path: str | Path | None, mark: int, title: str | None, words: Mapping[str, str]
) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    values = found.values.detach().cpu().double()
    known = values[~values.isnan()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    signed = low < -0.02 * max(high, 1e-30)
    reach = max(abs(low), abs(high)) or 1.0
    limits = (-reach, reach) if signed else (min(low, 0.0), max(high, 1e-30))
    colours = LinearSegmentedColormap.from_list(
        "regardant", DIVERGING if signed else SEQUENTIAL, bad="#ececec"
    )

    # Layers run from left to right, the way a text passes through them.
    width = max(6.4, min(13.0, 3.2 + 0.27 * found.layers))
    height = max(3.6, min(9.0, 2.5 + 0.2 * found.heads))
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(
        2, 2, width_ratios=[1, 0.24], height_ratios=[0.22, 1], wspace=0.02, hspace=0.02
    )
    body = figure.add_subplot(grid[1, 0])
    picture = body.imshow(
        values.T.numpy(), aspect="auto", cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest"
    )
    body.set_xticks([each - 0.5 for each in range(1, found.layers)], minor=True)
    body.set_yticks([each - 0.5 for each in range(1, found.heads)], minor=True)
    body.grid(which="minor", color="white", linewidth=1.2)
    body.tick_params(which="both", length=0, labelsize=8, colors=INK)
    body.set_xticks(_ticks(found.layers))
    body.set_yticks(_ticks(found.heads))
    body.set_xlabel(words["layer"], fontsize=9, color=INK)
    body.set_ylabel(words["head"], fontsize=9, color=INK)
    for rank, (layer, head) in enumerate(found.top(mark) if mark else [], start=1):
        body.add_patch(
            Rectangle((layer - 0.5, head - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.3, zorder=3)
        )
        shade = (float(values[layer, head]) - limits[0]) / (limits[1] - limits[0])
        dark = not 0.2 < shade < 0.8 if signed else shade > 0.55
        body.text(
            layer, head, str(rank), ha="center", va="center", fontsize=7, zorder=4,
            color="white" if dark else INK,
        )  # fmt: skip

    above = figure.add_subplot(grid[0, 0], sharex=body)
    best = values.nan_to_num(nan=-torch.inf).amax(dim=1).clamp(min=limits[0] if signed else 0)
    above.bar(range(found.layers), best.tolist(), width=0.82, color=FAINT, linewidth=0)
    above.set_ylabel("highest", fontsize=8, color=FAINT)
    above.tick_params(which="both", labelbottom=False, length=0, labelsize=7, colors=FAINT)

    side = figure.add_subplot(grid[1, 1])
    ordered = known.sort(descending=True).values.tolist()
    side.plot(range(1, len(ordered) + 1), ordered, color=INK, linewidth=1.4)
    side.fill_between(range(1, len(ordered) + 1), ordered, color=SEQUENTIAL[1], alpha=0.6)
    if mark:
        side.scatter(range(1, mark + 1), ordered[:mark], s=14, color=SEQUENTIAL[3], zorder=3, linewidth=0)
    side.set_xlabel("heads, highest first", fontsize=8, color=FAINT)
    side.tick_params(length=0, labelsize=7, colors=FAINT)
    side.yaxis.tick_right()
    for axes in (above, side):
        for edge in ("top", "right", "left"):
            axes.spines[edge].set_visible(False)
        axes.spines["bottom"].set_color("#d9dbe0")
    for edge in body.spines.values():
        edge.set_visible(False)

    corner = figure.add_subplot(grid[0, 1])
    corner.axis("off")
    bar = figure.colorbar(picture, cax=corner.inset_axes((0.08, 0.3, 0.84, 0.24)), orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7, colors=FAINT)
    corner.set_title(words["value"], fontsize=8, color=INK, y=0.5)
    if title or found.title:
        figure.suptitle(title or found.title, fontsize=11, color=INK, x=0.01, ha="left")
    if path is not None:
        figure.savefig(path, dpi=140)
    return figure


def _ticks(count: int) -> list[int]:
    step = next(each for each in (1, 2, 3, 5, 10, 20, 50, 100, 1000) if count / each <= 32)
    return list(range(0, count, step))
