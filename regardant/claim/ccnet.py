"""Do two criss-cross passes see what a non-local block sees, at a fraction of its cost?

Segmentation where a far patch decides a square's class: no attention, one pass, two passes, non-local.
"""

from functools import partial

import torch
from torch import nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops, peak_bytes
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.core.grid_mixer import GridMultiHead
from regardant.task.reference_patch import ReferencePatch
from regardant.train.fit import evaluate
from regardant.train.model import VectorModel

TASK = ReferencePatch(side=32)
DIM = 32


def trained(mixer):
    def unit(run):
        make = partial(VectorModel, TASK.channels, TASK.classes, [mixer], dim=DIM)
        model = run.fit(make, TASK, steps=900, batch=8, learning_rate=4e-3)
        return {"overlap": evaluate(model, TASK)}

    return unit


def reach() -> dict[str, float]:
    """From how many of 7×9 positions a gradient arrives at one, after one pass and after two."""
    found = {}
    for passes in (1, 2):
        layer = create("ccnet", dim=16, recurrence=passes).double()
        nn.init.ones_(layer.gamma)
        x = torch.randn(1, 7, 9, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x.requires_grad_()
        (felt,) = torch.autograd.grad(layer(x)[0, 2, 3].sum(), x)
        found[str(passes)] = float((felt[0].abs().sum(dim=-1) > 1e-12).sum())
    return found


@torch.no_grad()
def counted() -> dict[str, float]:
    """One pass against a non-local block of the same widths on a map of 97×97."""
    cross, whole = create("ccnet", dim=64, recurrence=1), GridMultiHead(64, 1, head_dim=64)
    x = torch.zeros(1, 97, 97, 64)
    return {
        "work": flops(lambda: cross(x)) / flops(lambda: whole(x)),
        "memory": peak_bytes(lambda: cross(x)) / peak_bytes(lambda: whole.reference(x)),
    }


def claim(context: Context) -> Outcome:
    reached, spent = context.check("reach", reach), context.check("cost", counted)
    found = context.measure(
        {
            "two passes": trained(partial(create, "ccnet", dim=DIM, recurrence=2)),
            "one pass": trained(partial(create, "ccnet", dim=DIM, recurrence=1)),
            "non-local": trained(partial(GridMultiHead, DIM, 1)),
            "none": trained(nn.Identity),
        }
    )
    two, one, whole, none = (each["overlap"].mean for each in found.values())
    return Outcome(
        setting="reference patch at 32×32; one layer of width 32 with an MLP, no convolution, 900 steps of 8 "
        "images; the paper trains a ResNet-101 on Cityscapes",
        figures=[Figure.of(TASK.metric_name, found, "overlap", ours=("two passes", "one pass"))],
        criteria=[
            quality("two passes segment better than one", two - one, at_least=0.0),
            quality("one pass segments better than none", one - none, at_least=0.0),
            quality("two passes are within 0.05 of non-local", two - whole, at_least=-0.05),
            cost("one pass takes at most 15 % of non-local's operations", spent["work"], at_most=0.15),
            cost("one pass holds at most 1/11 of non-local's memory", spent["memory"], at_most=1 / 11),
            exact("one pass sees row and column, 7 + 9 - 1", abs(reached["1"] - 15), at_most=0),
            exact("two passes see all 63 positions", abs(reached["2"] - 63), at_most=0),
        ],
        notes=["Non-local's memory is that of the attention matrix written out, as in the paper's block."],
    )
