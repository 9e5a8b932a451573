"""Do regions that read what they want find as much as full attention, at the cost that is claimed?

Segmentation where a far patch decides a square's class: bi-level routing, shifted windows that hold as many
keys, and full attention; and the work of routing and attention with S ~ (hw)^⅓.
"""

from functools import partial

import torch

from regardant.claim.context import Context
from regardant.claim.count import flops
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.compare.growth import fit
from regardant.core.grid_attention import WholeMapAttention
from regardant.core.grid_position import ValueConvolution
from regardant.core.grid_window import WindowAttention
from regardant.grid.biformer import BiLevelRoutingAttention
from regardant.task.reference_patch import ReferencePatch
from regardant.train.fit import evaluate
from regardant.train.model import VectorModel

SIDE, DIM, HEADS = 16, 32, 2
REGIONS, TOP, WINDOW = 4, 2, 6
"""Two regions of 16 positions are 32 keys; a window has 36."""
SIDES = (16, 32, 64, 128)
TASK = ReferencePatch(side=SIDE, edge=2, squares=6)


def window(shift):
    # A convolution of the values cannot stand in a shifted window.
    place = None if shift else ValueConvolution(DIM, 5)
    return partial(WindowAttention, DIM, HEADS, window=WINDOW, shift=shift, position=place)


def whole():
    return WholeMapAttention(DIM, HEADS, position=ValueConvolution(DIM, 5))


def routed(top):
    return [partial(BiLevelRoutingAttention, DIM, HEADS, regions=REGIONS, top=top)] * 2


VARIANTS = {
    "routed regions": routed(TOP),
    "routed regions that read 4": routed(4),
    "shifted windows": [window(0), window(WINDOW // 2)],
    "full": [whole] * 2,
}


def trained(mixers):
    def unit(run):
        make = partial(VectorModel, TASK.channels, TASK.classes, mixers, dim=DIM, expansion=2)
        model = run.fit(make, TASK, steps=450, batch=16, learning_rate=4e-3)
        return {"overlap": evaluate(model, TASK)}

    return unit


@torch.no_grad()
def grown() -> dict[str, float]:
    """The exponent, in the positions, of what routing and attention take without the projections."""
    layer, work = BiLevelRoutingAttention(DIM, HEADS, local=0), []
    for side in SIDES:
        x = torch.zeros(1, side, side, DIM)
        work.append(flops(partial(layer, x)) - 4 * flops(partial(layer.to_out, x)))
    return {"exponent": fit([side**2 for side in SIDES], work).exponent}


def claim(context: Context) -> Outcome:
    growth = context.check("growth", grown)["exponent"]
    found = context.measure({name: trained(mixers) for name, mixers in VARIANTS.items()})
    regions, _, windows, full = (each["overlap"].mean for each in found.values())
    return Outcome(
        setting="reference patch at 16×16; two layers of width 32 with an MLP and no position but the "
        "convolution of the values, 4×4 regions that read 2 (or 4), windows of 6, 450 steps of 16 images; "
        "the paper trains on ImageNet",
        figures=[
            Figure.of(
                TASK.metric_name, found, "overlap", ours=("routed regions", "routed regions that read 4")
            ),
            Figure.once("exponent of routing and attention, 16² to 128²", {"routed regions": growth}),
        ],
        criteria=[
            quality("routed regions are within 0.03 of full attention", regions - full, at_least=-0.03),
            quality("windows are 0.05 below routed regions", regions - windows, at_least=0.05),
            exact("routing and attention grow with (hw)^(4/3)", abs(growth - 4 / 3), at_most=0.1),
        ],
    )
