"""Do windows and then a grid beat windows twice, and a grid twice?

Segmentation where a far patch decides a square's class: windows then a grid, windows twice, a grid twice, and
full attention twice, at the same parameters.
"""

from functools import partial

import torch

from regardant.claim.context import Context
from regardant.claim.count import area_exponent
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.grid_attention import WholeMapAttention
from regardant.core.grid_position import TableBias
from regardant.grid.maxvit import BlockAttention, GridAttention
from regardant.task.reference_patch import ReferencePatch
from regardant.train.fit import evaluate
from regardant.train.model import VectorModel

SIDE, DIM, HEADS = 16, 32, 2
TASK = ReferencePatch(side=SIDE, edge=2, squares=6)
BLOCK = partial(BlockAttention, DIM, HEADS, window=4)
GRID = partial(GridAttention, DIM, HEADS, cells=4)


def whole():
    return WholeMapAttention(DIM, HEADS, position=TableBias(HEADS, SIDE))


def trained(*mixers):
    def unit(run):
        make = partial(VectorModel, TASK.channels, TASK.classes, mixers, dim=DIM, expansion=2)
        model = run.fit(make, TASK, steps=450, batch=16, learning_rate=4e-3)
        return {"overlap": evaluate(model, TASK)}

    return unit


def linked() -> dict[str, float]:
    """The share of pairs of positions that a gradient connects on 16×16, from one position in nine."""
    found = {}
    for name, makers in {"block and grid": (BLOCK, GRID), "block twice": (BLOCK, BLOCK)}.items():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(*(make() for make in makers)).double()
        x = torch.randn(1, SIDE, SIDE, DIM, dtype=torch.float64, requires_grad=True)
        y, seen = layers(x).flatten(1, 2), 0.0
        for at in range(0, SIDE**2, 29):
            (felt,) = torch.autograd.grad(y[0, at].sum(), x, retain_graph=True)
            seen += float((felt[0].abs().sum(-1) > 0).double().mean()) / len(range(0, SIDE**2, 29))
        found[name] = seen
    return found


def grown() -> dict[str, float]:
    """The exponent of the work in the positions, from 28² to 112²."""
    layers = BlockAttention(DIM, HEADS), GridAttention(DIM, HEADS)
    return {"exponent": area_exponent(layers, DIM)}


def claim(context: Context) -> Outcome:
    reached, growth = context.check("linked", linked), context.check("growth", grown)["exponent"]
    found = context.measure(
        {
            "block and grid": trained(BLOCK, GRID),
            "block twice": trained(BLOCK, BLOCK),
            "grid twice": trained(GRID, GRID),
            "full": trained(whole, whole),
        }
    )
    both, blocks, grids, full = (each["overlap"].mean for each in found.values())
    return Outcome(
        setting="reference patch at 16×16; two layers of width 32 with an MLP, no convolution, P = G = 4, "
        "450 steps of 16 images; the paper trains on ImageNet",
        figures=[Figure.of(TASK.metric_name, found, "overlap", ours=("block and grid",))],
        criteria=[
            quality("block and grid segment better than block twice", both - blocks, at_least=0.0),
            quality("block and grid segment better than grid twice", both - grids, at_least=0.0),
            quality("block and grid are within 0.02 of full attention", both - full, at_least=-0.02),
            exact("block and grid link all pairs", abs(1 - reached["block and grid"]), at_most=1e-9),
            exact("block twice links those of a window", abs(1 / 16 - reached["block twice"]), at_most=1e-12),
            exact("work grows linearly in the positions", abs(growth - 1), at_most=0.05),
        ],
    )
