"""Curves over the layers of a model: accuracies of probes, a logit lens, a mean entropy.

plot_layers({"fact": depth.scores, "surface": other.scores}, value="accuracy", path="depth.png")
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.lens.head_map import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#d1495b", "#14507a", "#c98a2b", "#4f7f5b", "#7b2d5e", "#5aa0c8", "#8a8f9c")
APART = 0.055
"""Of the picture's height: how far labels keep from each other."""


def plot_layers(
    curves: Mapping[str, Float[Tensor, "s"]], *, value: str, title: str = "", path: str | Path | None = None,
    chance: float | None = None,
) -> Figure:  # fmt: skip
    """A line for each curve, named at its end; the first point is the embedding's, then a point a layer.
    `chance` draws what knows nothing. Written to `path` if given; the figure is returned."""
    require(len(curves) > 0, "curves is empty, but there is at least one to draw")
    require(
        len(curves) <= len(COLOURS),
        f"curves has {len(curves)} lines, but {len(COLOURS)} are as many as can be told apart",
    )
    lengths = {len(curve) for curve in curves.values()}
    require(len(lengths) == 1, f"curves have {sorted(lengths)} points, but must be of the same layers")
    require(
        find_spec("matplotlib") is not None,
        'plots need matplotlib, which is not installed: pip install "regardant[lens]"',
    )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.8), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    last = lengths.pop() - 1
    drawn = {name: curve.detach().cpu().double().tolist() for name, curve in curves.items()}
    for colour, (name, points) in zip(COLOURS, drawn.items()):
        axes.plot(range(len(points)), points, color=colour, linewidth=1.8, label=name)
        axes.scatter([last], points[-1:], color=colour, s=16, zorder=3, linewidth=0)
    if chance is not None:
        axes.axhline(chance, color=FAINT, linewidth=0.9, linestyle=(0, (2, 3)), zorder=0)
    low, high = axes.get_ylim()
    # Names stand at the ends of their lines, apart where they would overlap: up, then down from the top.
    names = sorted(drawn, key=lambda name: drawn[name][-1])
    heights, step = [drawn[name][-1] for name in names], APART * (high - low)
    for at in range(1, len(heights)):
        heights[at] = max(heights[at], heights[at - 1] + step)
    for at in reversed(range(len(heights))):
        heights[at] = min(heights[at], high - step * (len(heights) - 1 - at))
    for name, height in zip(names, heights):
        axes.annotate(
            name, (last, height), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5,
            color=COLOURS[list(drawn).index(name)], annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(0, last)
    axes.set_xlabel("layer (0: the embedding)", fontsize=9, color=INK)
    axes.set_ylabel(value, fontsize=9, color=INK)
    axes.grid(axis="y", color="#eceef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
    axes.spines["bottom"].set_color("#d9dbe0")
    if title:
        axes.set_title(title, fontsize=11, color=INK, loc="left")
    if path is not None:
        figure.savefig(path, dpi=140)
    return figure
