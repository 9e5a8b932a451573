"""Where a position of an image looks, in every layer of a vision model of ours.

    looks(model, images).plot("looks.png")

The model runs as it always does; what comes into its attention layers is seen, and each gives its mixing
matrix for it. Layers whose output is no matrix times the values have none, and are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.grid_mixer import GridMixer
from regardant.lens.head_map import DIVERGING, INK, SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RING = DIVERGING[1]
MOST = 8
"""Images, and layers, that one picture shows."""
SIDE = 1.35
"""Inches of an image in a picture."""


@dataclass(frozen=True)
class Look:
    """How much the asking position takes of every position, head by head; `kind` is the layer's class."""

    kind: str
    map: Float[Tensor, "b e i j"]


@dataclass(frozen=True)
class Looks:
    """Looks by the layers' names; `at` is where the asking position stands, in shares of height and width."""

    images: Float[Tensor, "b k h w"]
    layers: Mapping[str, Look]
    at: tuple[float, float]

    def plot(
        self, path: str | Path | None = None, *, title: str = "Where the ringed position looks"
    ) -> Figure:
        """A row for every image and a column for every layer, the mean over its heads; the darker, the more.
        Written to `path` (png, svg, pdf) if given; the figure is returned."""
        require(
            find_spec("matplotlib") is not None,
            'plots need matplotlib, which is not installed: pip install "regardant[lens]"',
        )
        return _plotted(self, path, title)


@torch.no_grad()
def looks(
    model: nn.Module, images: Float[Tensor, "b k h w"], *, at: tuple[float, float] = (0.5, 0.5)
) -> Looks:
    """What the position at `at`, (down, across) in shares of the image, attends to in each layer."""
    require(all(0 <= share < 1 for share in at), f"at is {at}, but holds two shares, from 0 to below 1")
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, GridMixer) and hasattr(layer, "mixing_matrix")
    }
    require(
        len(layers) > 0,
        f"{type(model).__name__} holds no attention on maps that is a matrix times its values: there is "
        "nothing to look at",
    )
    found: dict[str, Look] = {}

    def watch(name: str, layer: GridMixer):
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            size = given[0].shape[1:3]
            row, column = (int(share * side) for share, side in zip(at, size))
            seen = layer.mixing_matrix(given[0])[:, :, row * size[1] + column]
            found[name] = Look(type(layer).__name__, seen.unflatten(-1, size).cpu())

        return layer.register_forward_pre_hook(hook)

    handles, training = [watch(*each) for each in layers.items()], model.training
    try:
        model.eval()(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return Looks(images.cpu(), found, at)


def _plotted(seen: Looks, path: str | Path | None, title: str) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    images, layers = seen.images[:MOST].float().mean(dim=1), list(seen.layers.values())[:MOST]
    height, width = images.shape[1:]
    colours = LinearSegmentedColormap.from_list("regardant", SEQUENTIAL)
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    figure = Figure(
        figsize=(SIDE * (1 + len(layers)), SIDE * height / width * len(images) + 0.7), facecolor="white",
        layout="constrained",
    )  # fmt: skip
    grid = figure.subplots(len(images), 1 + len(layers), squeeze=False)
    for index, (row, image) in enumerate(zip(grid, images)):
        for axes, layer in zip(row, [None, *layers]):
            if layer is None:
                axes.imshow(image.numpy(), cmap="gray_r")
            else:
                axes.imshow(layer.map[index].float().mean(dim=0).numpy(), cmap=colours, vmin=0, extent=whole)
                axes.contour(
                    image.numpy(), levels=[float(image.mean() + image.std())], colors=INK, linewidths=0.6
                )
            size = images.shape[1:] if layer is None else layer.map.shape[2:]
            down, across = _middle(seen.at, (height, width), size)
            axes.scatter([across], [down], s=42, facecolor="none", edgecolor=RING, linewidth=1.4)
            axes.set_axis_off()
    for axes, layer in zip(grid[0], [None, *layers]):
        size = f"{height}×{width}" if layer is None else "{}×{}".format(*layer.map.shape[2:])
        axes.set_title(f"{'image' if layer is None else layer.kind}\n{size}", fontsize=7.5, color=INK)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    if path is not None:
        figure.savefig(path, dpi=140)
    return figure


def _middle(at: tuple[float, float], image: tuple[int, int], size: tuple[int, int]) -> list[float]:
    """Where on the image the middle of the asking position is, on a map of this size."""
    return [(int(share * along) + 0.5) * side / along - 0.5 for share, side, along in zip(at, image, size)]
