"""Does a cross of stripes carry farther than shifted windows, and LePE farther than other positions?

Segmentation where a far patch decides a square's class: cross-shaped attention, shifted windows that hold as
many keys, rows then columns; and the cross with LePE, without and with a bias by offset, tested on larger
images than were trained on.
"""

from dataclasses import replace
from functools import partial

from regardant.backbone.kit.field import Field
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.grid_attention import GroupedAttention
from regardant.core.grid_pattern import Stripe
from regardant.core.grid_position import TableBias, ValueConvolution
from regardant.core.grid_window import WindowAttention
from regardant.grid.axial_transformer import AxialAttention
from regardant.grid.cswin import CrossShapedAttention
from regardant.task.reference_patch import ReferencePatch
from regardant.train.fit import evaluate
from regardant.train.model import VectorModel

SIDE, LARGER, DIM, HEADS, WINDOW = 16, 24, 32, 2, 6
TASK = ReferencePatch(side=SIDE, edge=2, squares=6)


class CrossWithBias(GroupedAttention):
    """The same cross with a bias by offset, as windows have it, in place of LePE."""

    def __init__(self):
        super().__init__(DIM, HEADS, position=[TableBias(1, LARGER) for _ in range(2)])

    def patterns(self, *size):
        return tuple(Stripe(width=1, axis=axis).on(*size) for axis in (1, 0))


def windows(shift):
    return partial(
        WindowAttention, DIM, HEADS, window=WINDOW, shift=shift, position=ValueConvolution(DIM) if not shift
        else None,
    )  # fmt: skip


VARIANTS = {
    "cross": [partial(CrossShapedAttention, DIM)] * 2,
    "shifted windows": [windows(0), windows(WINDOW // 2)],
    "rows then columns": [partial(AxialAttention, DIM, HEADS, axes=axis) for axis in (1, 0)],
    "cross without position": [partial(CrossShapedAttention, DIM, lepe=False)] * 2,
    "cross with bias": [CrossWithBias] * 2,
}


def trained(mixers):
    def unit(run):
        make = partial(VectorModel, TASK.channels, TASK.classes, mixers, dim=DIM, expansion=2)
        model = run.fit(make, TASK, steps=350, batch=12, learning_rate=4e-3)
        return {
            "overlap": evaluate(model, TASK),
            "on larger images": evaluate(model, replace(TASK, side=LARGER, squares=14)),
        }

    return unit


def reached() -> dict[str, float]:
    """The share of all pairs of positions that two layers connect on 16×16."""
    size, found = (SIDE, SIDE), {}
    for name in ("cross", "shifted windows"):
        first, second = (Field.of_pattern(make().receptive_field(*size), size) for make in VARIANTS[name])
        found[name] = float(first.then(second).relation.double().mean())
    return found


def claim(context: Context) -> Outcome:
    share = context.check("reach", reached)
    found = context.measure({name: trained(mixers) for name, mixers in VARIANTS.items()})
    cross, shifted, _, none, bias = found.values()
    return Outcome(
        setting="reference patch at 16×16, and at 24×24 with as many squares an area for the larger images; "
        "two layers of width 32 with an MLP, no convolution beside LePE, stripes of 1, windows of 6, 350 "
        "steps of 12 images; the paper trains on ImageNet",
        figures=[
            Figure.of(TASK.metric_name, found, "overlap", ours=("cross",)),
            Figure.of("the same on larger images", found, "on larger images", ours=("cross",)),
        ],
        criteria=[
            quality(
                "the cross segments better than shifted windows",
                cross["overlap"].mean - shifted["overlap"].mean, at_least=0.0,
            ),
            quality(
                "on larger images LePE is no worse than no position",
                cross["on larger images"].mean - none["on larger images"].mean, at_least=0.0,
            ),
            quality(
                "on larger images LePE is no worse than a bias",
                cross["on larger images"].mean - bias["on larger images"].mean, at_least=0.0,
            ),
            exact("two crosses link all pairs", abs(1 - share["cross"]), at_most=1e-9),
            quality("windows and shifted ones leave pairs apart", 1 - share["shifted windows"], at_least=0.1),
        ],
    )  # fmt: skip
