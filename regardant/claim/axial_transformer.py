"""Do rows and columns model an image as well as attention over all pixels before?

The paper's autoregressive model, one channel: unmasked rows and causal columns, shifted down a row, then
causal rows over that and over the input shifted right. Digits in 17 grey levels.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops, parameters
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.compare.growth import fit as fit_growth
from regardant.core.grid_mixer import GridMultiHead
from regardant.task.digits import LEVELS, DigitPixels
from regardant.train.fit import evaluate, seeded
from regardant.train.image_model import AxialImageModel, RasterImageModel

TASK, DIM, HEADS, SIZE = DigitPixels(), 48, 4, (8, 8)


def along(axis: int, *, is_causal: bool):
    return partial(create, "axial-transformer", dim=DIM, heads=HEADS, axes=axis, is_causal=is_causal)


ROWS, COLUMNS, PAST_OF_ROW = (
    along(1, is_causal=False),
    along(0, is_causal=True),
    along(1, is_causal=True),
)
RASTER = partial(create, "softmax", dim=DIM, heads=HEADS, causal=True)
axial = partial(AxialImageModel, LEVELS, dim=DIM, size=SIZE)
MODELS = {
    "axial": partial(axial, outer=[ROWS, COLUMNS] * 2, inner=[PAST_OF_ROW] * 2),
    "raster": partial(RasterImageModel, LEVELS, [RASTER] * 6, dim=DIM, size=SIZE),
    "rows only": partial(axial, outer=[], inner=[PAST_OF_ROW] * 6),
}


def trained(make):
    def unit(run):
        return {"bits": evaluate(run.fit(make, TASK, steps=750, batch=32, learning_rate=2e-3), TASK)}

    return unit


@torch.no_grad()
def order() -> dict[str, float]:
    """Change each pixel: how far the logits up to it move, and those in later rows."""
    with seeded(0):
        model = MODELS["axial"]().double()
    plain = torch.randint(LEVELS, SIZE, generator=torch.Generator().manual_seed(0))
    # The last row has no later one; every image of the batch differs from the plain one in one pixel.
    changes = torch.eye(64, dtype=torch.long)[:56].view(56, *SIZE)
    logits = model(torch.cat([plain[None], (plain + 5 * changes) % LEVELS])).flatten(1, 2)
    moved = (logits[1:] - logits[0]).abs().amax(dim=-1)
    return {
        "before": max(moved[place, : place + 1].max().item() for place in range(56)),
        "after": min(moved[place, 8 * (place // 8 + 1) :].max().item() for place in range(56)),
    }


@torch.no_grad()
def counted() -> dict[str, float]:
    """Growth of the attention's counted work over maps of 8² to 64², projections left out."""
    found = {}
    layers = {"axial": ROWS(), "whole": GridMultiHead(DIM, HEADS)}
    for name, layer in layers.items():
        sides, inside = (8, 16, 32, 64), []
        linear = 4 * 2 * DIM * DIM
        for side in sides:
            total = flops(lambda s=side, layer=layer: layer(torch.zeros(1, s, s, DIM)))
            inside.append(total - linear * side**2)
        found[name] = fit_growth([side**2 for side in sides], inside).exponent
    return found


def claim(context: Context) -> Outcome:
    checked, grows = context.check("order", order), context.check("cost", counted)
    found = context.measure({name: trained(make) for name, make in MODELS.items()})
    axial, raster, rows = (each["bits"].mean for each in found.values())
    sizes = {name: parameters(make()) for name, make in MODELS.items()}
    return Outcome(
        setting=f"digits at 8×8 in {LEVELS} levels; 4 outer and 2 inner layers of width {DIM}, 750 steps of "
        "32; the paper models ImageNet at 32×32 and 64×64",
        figures=[
            Figure.of(TASK.metric_name, found, "bits", ours="axial"),
            Figure.once("parameters", {"axial": sizes.pop("axial")}, sizes),
        ],
        criteria=[
            quality("at most 0.1 bits above attention in raster order", axial - raster, at_most=0.1),
            quality("at least 0.05 bits below rows alone", rows - axial, at_least=0.05),
            cost("operations grow as n^1.5, ± 0.05, in positions", abs(grows["axial"] - 1.5), at_most=0.05),
            cost("those of attention over all positions as n^1.95", grows["whole"], at_least=1.95),
            exact("no pixel moves the logits at or before it", checked["before"], at_most=1e-9),
            exact("every pixel moves logits in a later row", checked["after"], at_least=1e-9),
        ],
    )
