"""Does blocked local attention hold few copies of its keys, and tell shapes apart as well as convolutions?

Counted: what is held for a map of 64×64, blocks with halos against a window gathered for every position.
Trained: a small classifier of shapes, with halo attention and with convolutions of as many parameters.
"""

from functools import partial

import torch
from torch.nn import functional as F

from regardant.backbone.kit.convolution import Convolution
from regardant.claim.context import Context
from regardant.claim.count import area_exponent, parameters, peak_bytes
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.core.grid_groups import blocks_with_halo
from regardant.grid.halonet import HaloAttention
from regardant.task.shape_classes import ShapeClasses
from regardant.train.fit import evaluate
from regardant.train.image_classifier import ImageClassifier

TASK = ShapeClasses(kinds=6, textures=1, radius=(0.2, 0.35))
DIM = 48
MIXERS = {
    "halo": partial(HaloAttention, DIM, 3, block=4, halo=2),
    # In three groups, a 3×3 convolution has the 3 · 48² parameters of three projections.
    "convolution": partial(Convolution, DIM, DIM, 3, groups=3, bias=False),
}


def trained(mixer):
    def unit(run):
        make = partial(
            ImageClassifier, TASK.channels, TASK.classes, [mixer] * 3, dim=DIM, stride=4, local=False
        )
        model = run.fit(make, TASK, steps=400, batch=32, learning_rate=2e-3)
        return {"accuracy": evaluate(model, TASK)}

    return unit


@torch.no_grad()
def gathered() -> dict[str, float]:
    """How many copies of the keys are made, and what a pass holds, against a 7×7 window a position."""
    layer, x = HaloAttention(DIM, 3), torch.randn(1, 64, 64, DIM)
    copies = blocks_with_halo(x, (8, 8), (3, 3)).numel() / x.numel()

    def by_position():
        q, (k, v) = layer.to_q(x), layer.to_kv(x).split(DIM, dim=-1)
        k, v = (
            F.unfold(part.permute(0, 3, 1, 2), 7, padding=3).mT.unflatten(-1, (3, 16, 49)) for part in (k, v)
        )
        q = q.flatten(1, 2).unflatten(-1, (3, 1, 16))
        return ((q @ k * 16**-0.5).softmax(-1) @ v.mT).flatten(2)

    return {"copies": copies, "memory": peak_bytes(lambda: layer(x)) / peak_bytes(by_position)}


def sizes() -> dict[str, float]:
    """Weights of projections at two halos, and of the two trained networks."""
    halos = [sum(each.numel() for each in (layer.to_q.weight, layer.to_kv.weight))
             for layer in (HaloAttention(DIM, 3, halo=halo) for halo in (1, 7))]  # fmt: skip
    small, large = (parameters(make()) for make in MIXERS.values())
    return {"grown": halos[1] - halos[0], "apart": abs(small - large) / large}


def claim(context: Context) -> Outcome:
    held, counted = context.check("gathered", gathered), context.check("sizes", sizes)
    growth = context.check(
        "growth", lambda: {"exponent": area_exponent([HaloAttention(DIM, 3)], DIM, sides=(32, 128))}
    )
    found = context.measure({name: trained(mixer) for name, mixer in MIXERS.items()})
    halo, convolution = (each["accuracy"].mean for each in found.values())
    return Outcome(
        setting="six kinds of shapes at 32×32, told apart on a map of 8×8 by three layers of width 48, "
        "blocks of 4 with a halo of 2, 400 steps of 32 images; the paper trains on ImageNet",
        figures=[Figure.of("accuracy", found, "accuracy", ours=("halo",))],
        criteria=[
            quality("halo attention is no worse than convolutions", halo - convolution, at_least=0.0),
            exact("keys are copied (14 / 8)² times", abs(held["copies"] - (14 / 8) ** 2), at_most=1e-9),
            cost("it holds less than half of a window a position", held["memory"], at_most=0.5),
            exact("projections do not grow with the halo", counted["grown"], at_most=0),
            cost("both have as many parameters, to 6 %", counted["apart"], at_most=0.06),
            exact("work grows linearly in the positions", abs(growth["exponent"] - 1), at_most=0.05),
        ],
    )
