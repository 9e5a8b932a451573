"""Is a modulated query worth as much as attention in windows, and what do its parts do?

The same small classifier of shapes around focal modulation, attention in windows, and depthwise convolutions
alone; and modulation with the modulator added for multiplied, and with all gates at one. Timed: a layer of
modulation against one of attention in windows. Counted: how its work grows with the map.
"""

from functools import partial
from time import perf_counter

import torch
from torch import nn

from regardant.backbone.kit.convolution import DepthwiseConvolution
from regardant.claim.context import Context
from regardant.claim.count import area_exponent
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.core.grid_position import TableBias
from regardant.core.grid_window import WindowAttention
from regardant.grid.focalnet import FocalModulation
from regardant.task.shape_classes import ShapeClasses
from regardant.train.fit import evaluate
from regardant.train.image_classifier import ImageClassifier

TASK = ShapeClasses(kinds=6, textures=1, radius=(0.2, 0.35))
DIM, HEADS, LAYERS, WINDOW = 48, 3, 3, 4


class Added(FocalModulation):
    """The query plus the modulator."""

    def forward(self, x, *, record=None):
        q, context, gates = self.parts(x)
        return self.to_out(q + self.to_modulator(self.gathered(context, gates)))


class Ungated(FocalModulation):
    """All levels count the same everywhere."""

    def gathered(self, context, gates):
        return super().gathered(context, torch.ones_like(gates))


class Convolved(nn.Sequential):
    """A depthwise convolution between two projections, as wide as the levels reach together."""

    def __init__(self):
        super().__init__(nn.Linear(DIM, DIM), DepthwiseConvolution(DIM, 7), nn.GELU(), nn.Linear(DIM, DIM))


def windows():
    return WindowAttention(DIM, HEADS, window=WINDOW, position=TableBias(HEADS, WINDOW))


MIXERS = {
    "modulation": partial(FocalModulation, DIM),
    "windows": windows,
    "convolutions": Convolved,
    "added": partial(Added, DIM),
    "no gates": partial(Ungated, DIM),
}


def trained(mixer):
    def unit(run):
        make = partial(
            ImageClassifier, TASK.channels, TASK.classes, [mixer] * LAYERS, dim=DIM, stride=4, local=False
        )
        model = run.fit(make, TASK, steps=350, batch=32, learning_rate=3e-3)
        return {"accuracy": evaluate(model, TASK)}

    return unit


@torch.no_grad()
def timed() -> dict[str, float]:
    """The time of a layer of modulation over one of windows, the best of ten in turn, on 56×56."""
    x, best = torch.randn(1, 56, 56, 96), {}
    mixers = {"modulation": FocalModulation(96), "windows": WindowAttention(96, 3, position=TableBias(3, 7))}
    for _ in range(10):
        for name, mixer in mixers.items():
            began = perf_counter()
            mixer(x)
            best[name] = min(best.get(name, torch.inf), perf_counter() - began)
    return {"share": best["modulation"] / best["windows"]}


def claim(context: Context) -> Outcome:
    time = context.check("time", timed)["share"]
    growth = context.check("growth", lambda: {"exponent": area_exponent([FocalModulation(DIM)], DIM)})
    found = context.measure({name: trained(mixer) for name, mixer in MIXERS.items()})
    ours, attention, _, added, ungated = (each["accuracy"] for each in found.values())
    noise = 2 * (ours.error**2 + attention.error**2) ** 0.5
    return Outcome(
        setting=f"six kinds of shapes at 32×32, told apart on a map of 8×8 by {LAYERS} layers of width "
        f"{DIM}, two levels from 3×3 on, windows of {WINDOW} with a bias, 350 steps of 32 images; the paper "
        "trains on ImageNet",
        figures=[
            Figure.of("accuracy", found, "accuracy", ours="modulation"),
            Figure.once("time of modulation over windows, 56×56 positions", {"modulation": time}),
        ],
        criteria=[
            quality(
                "no worse than windows, but for two standard errors", ours.mean - attention.mean,
                at_least=-noise,
            ),
            quality("a modulator that is added does worse", ours.mean - added.mean, at_least=0.0),
            quality("without gates it does worse", ours.mean - ungated.mean, at_least=0.0),
            cost("a layer takes less time than one of attention in windows", time, at_most=1.0),
            exact("work grows linearly in the positions", abs(growth["exponent"] - 1), at_most=0.02),
        ],
    )  # fmt: skip
