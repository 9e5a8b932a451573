"""Does attention among positions and among channels in turn beat either alone?

Segmentation in noise, where a far patch decides a square's class: windows, groups of channels, and both.
"""

from functools import partial

import torch

from regardant.claim.context import Context
from regardant.claim.count import area_exponent
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.grid_window import WindowAttention
from regardant.grid.davit import ChannelGroupAttention
from regardant.task.reference_patch import ReferencePatch
from regardant.train.fit import evaluate
from regardant.train.model import VectorModel

DIM, HEADS = 32, 2
TASK = ReferencePatch(side=16, edge=2, squares=6, noise=0.5)
WINDOW = partial(WindowAttention, DIM, HEADS, window=4)
CHANNEL = partial(ChannelGroupAttention, DIM, HEADS, scale="tokens")


def trained(*mixers):
    def unit(run):
        make = partial(VectorModel, TASK.channels, TASK.classes, mixers, dim=DIM, expansion=2, size=(16, 16))
        model = run.fit(make, TASK, steps=450, batch=16, learning_rate=4e-3)
        return {"overlap": evaluate(model, TASK)}

    return unit


def reached() -> dict[str, float]:
    """The share of pairs of positions that a gradient connects in one layer on 9×7."""
    layer = ChannelGroupAttention(8, 2).double()
    x = torch.randn(1, 9, 7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    y, seen = layer(x).flatten(1, 2), []
    for at in range(63):
        (felt,) = torch.autograd.grad(y[0, at].sum(), x, retain_graph=True)
        seen.append(float((felt[0].abs().sum(-1) > 0).double().mean()))
    return {"share": min(seen)}


def grown() -> dict[str, float]:
    """The exponent of the work in the positions, from 28² to 112²."""
    layers = WindowAttention(DIM, HEADS), ChannelGroupAttention(DIM, HEADS)
    return {"exponent": area_exponent(layers, DIM)}


def claim(context: Context) -> Outcome:
    share, growth = context.check("reach", reached)["share"], context.check("growth", grown)["exponent"]
    found = context.measure(
        {
            "both in turn": trained(WINDOW, CHANNEL, WINDOW, CHANNEL),
            "windows": trained(*[WINDOW] * 4),
            "channels": trained(*[CHANNEL] * 4),
        }
    )
    both, windows, channels = (each["overlap"].mean for each in found.values())
    return Outcome(
        setting="reference patch at 16×16 with noise of 0.5; four layers of width 32 with an MLP and learned "
        "positions, no convolution, windows of 4, channels scaled by tokens, 450 steps of 16 images; the "
        "paper trains on ImageNet",
        figures=[Figure.of(TASK.metric_name, found, "overlap", ours=("both in turn",))],
        criteria=[
            quality("both in turn segment better than windows", both - windows, at_least=0.0),
            quality("both in turn segment better than channels", both - channels, at_least=0.0),
            exact("one channel layer links all pairs of positions", abs(1 - share), at_most=1e-9),
            exact("work grows linearly in the positions", abs(growth - 1), at_most=0.05),
        ],
    )
