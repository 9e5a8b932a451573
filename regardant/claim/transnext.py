"""Does a scale by the number of keys carry to larger images?

Small TransNeXts that tell coloured shapes apart at 32×32 and are tried at 48×48 and 64×64: as they are, with
the length left at that of training, and with plain products over √d. Counted: how the work of the mixer grows
where the pooled map has a fixed size, against attention to the whole map.
"""

from functools import partial

import torch

from regardant.backbone.transnext import TransNeXt
from regardant.claim.context import Context
from regardant.claim.count import area_exponent, parameters
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.grid_attention import WholeMapAttention
from regardant.grid.transnext import AggregatedAttention, LengthScale
from regardant.task.shape_classes import ShapeClasses
from regardant.train.fit import evaluate

SIDE, LARGER = 32, (48, 64)
TASK = ShapeClasses(asked="kind and colour", kinds=4, colours=4, textures=1, radius=(0.2, 0.35), side=SIDE)
CONFIG = dict(
    widths=(32, 64), depths=(1, 2), head_dim=16, reductions=(2, 1), expansions=(4, 3), trained=SIDE,
    drop_path=0.0, classes=TASK.classes,
)  # fmt: skip


class AtTrainedLength(LengthScale):
    """The logarithm of as many keys as a map in training has, whatever is seen: 9 + 4² and 4²."""

    def __init__(self, heads: int, head_dim: int, *, length: int):
        super().__init__(heads, head_dim)
        self.length = length

    def forward(self, q, seen):
        return super().forward(q, torch.full_like(seen, self.length))


class PlainScale(LengthScale):
    """Queries and keys as they are, over √d."""

    def unit(self, x):
        return x

    def forward(self, q, seen):
        return (q + self.embedding[:, None]) * q.shape[-1] ** -0.5


SCALES = {
    "by length": LengthScale,
    "at the length of training": None,
    "plain products": PlainScale,
}


def made(scale):
    model = TransNeXt(**CONFIG)
    for layer in model.modules():
        if not isinstance(getattr(layer, "scale", None), LengthScale):
            continue
        length = 9 + 16 if isinstance(layer, AggregatedAttention) else 16
        own = partial(AtTrainedLength, length=length) if scale is None else scale
        layer.scale = own(layer.heads, layer.dim // layer.heads)
    return model


def trained(scale):
    def unit(run):
        model = run.fit(partial(made, scale), TASK, steps=500, batch=32, learning_rate=5e-3)
        own = evaluate(model, TASK)
        larger = {side: evaluate(model, TASK.at(side)) for side in LARGER}
        return {"own": own, "lost": own - larger[64]} | {
            f"at {side}": found for side, found in larger.items()
        }

    return unit


def grown() -> dict[str, float]:
    """Exponents of the work in the positions, from 28² to 112²."""
    layers = {"aggregated": AggregatedAttention(24, 2), "whole": WholeMapAttention(24, 2)}
    return {name: area_exponent([layer], 24) for name, layer in layers.items()}


def claim(context: Context) -> Outcome:
    growth = context.check("growth", grown)
    size = context.check("parameters", lambda: {"count": parameters(made(LengthScale))})["count"]
    found = context.measure({name: trained(scale) for name, scale in SCALES.items()})
    ours, fixed, plain = (each["lost"].mean for each in found.values())
    return Outcome(
        setting=f"four kinds of shapes in four colours, trained at 32×32 and tried at 64×64; two stages of "
        f"width 32 and 64, {size / 1000:.0f} k parameters, 500 steps of 32 images; the paper trains on "
        "ImageNet at 224 and tries up to 640",
        figures=[
            Figure.of("accuracy at 32×32", found, "own", ours="by length"),
            *(
                Figure.of(f"accuracy at {side}×{side}", found, f"at {side}", ours="by length")
                for side in LARGER
            ),
            Figure.of("accuracy lost at 64×64", found, "lost", ours="by length"),
        ],
        criteria=[
            quality("loses no more at 64×64 than with the length of training", fixed - ours, at_least=0.0),
            quality("loses no more at 64×64 than with plain products", plain - ours, at_least=0.0),
            exact("work grows linearly where the pool is fixed", abs(growth["aggregated"] - 1), at_most=0.05),
            exact("attention to the whole map grows with the square", growth["whole"], at_least=1.9),
        ],
    )
