"""Do summaries of segments give a model what local attention lacks, at the cost of n^1.5?

Bytes of the standard library in windows of 256: Combiner's fixed form, with segments of 16, against the same
segments without summaries, against the same with one token of every earlier segment in its summary's place
(the pattern of fixed sparse attention), and against full attention. And, exactly, the matrix that each form
implies, and the growth of its counted work.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.compare.growth import fit as fit_growth
from regardant.core.pattern import Blocks
from regardant.core.pattern_algebra import Pattern
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

SEGMENT = 16
TASK = Bytes(length=256, held_out=64)
FORMS = ("combiner-fixed", "combiner-axial", "combiner-logsparse")
LENGTHS = (256, 576, 1024, 2304, 4096)


class LastOfSegment(Pattern):
    """The last token of every segment, for everybody."""

    def allows(self, i, j, *, batch=None, head=None):
        return (j % SEGMENT == SEGMENT - 1) & (i == i)


def trained(system: str, **own):
    def unit(run):
        mixers = [partial(create, system, dim=64, heads=4, causal=True, **own)] * 2
        make = partial(TokenModel, TASK.vocabulary, mixers, dim=64, length=TASK.length)
        return {"loss": evaluate(run.fit(make, TASK, steps=250, batch=8, learning_rate=3e-3), TASK)}

    return unit


@torch.no_grad()
def implied() -> dict[str, float]:
    """Of all forms' matrices: how far rows are from 1, the least weight in reach, the most out of it."""
    rows, least, ahead = 0.0, 1.0, 0.0
    for form in FORMS:
        with seeded(0):
            layer = create(form, dim=32, heads=2, causal=True).double()
            matrix = layer.mixing_matrix(torch.randn(1, 150, 32, dtype=torch.float64))
        reach = torch.ones(150, 150, dtype=torch.bool).tril()
        rows = max(rows, (matrix.sum(-1) - 1).abs().max().item())
        least, ahead = (
            min(least, matrix[..., reach].min().item()),
            max(ahead, matrix[..., ~reach].max().item()),
        )
    return {"rows": rows, "least": least, "ahead": ahead}


@torch.no_grad()
def growth() -> dict[str, float]:
    """The exponents of the counted work, projections left out; segments of √n tokens where there are some."""
    found = {}
    for form in FORMS:
        counted = []
        for n in LENGTHS:
            own = {} if form == "combiner-logsparse" else {"segment": round(n**0.5)}
            layer = create(form, dim=64, heads=2, causal=True, **own)
            x = torch.randn(1, n, 64, generator=torch.Generator().manual_seed(n))
            projections = sum(2 * weight.numel() * n for weight in layer.parameters())
            counted.append(flops(partial(layer, x)) - projections)
        found[form] = fit_growth(LENGTHS, counted).exponent
    return found


def claim(context: Context) -> Outcome:
    matrix = context.check("implied matrices", implied)
    grows = context.check("growth", growth)
    local = Blocks(SEGMENT)
    found = context.measure(
        {
            "combiner fixed": trained("combiner-fixed", segment=SEGMENT),
            "segments alone": trained("softmax", pattern=local),
            "fixed sparse": trained("softmax", pattern=local | LastOfSegment()),
            "softmax": trained("softmax"),
        }
    )
    ours, alone, sparse, full = (each["loss"].mean for each in found.values())
    return Outcome(
        setting=f"bytes of the standard library, windows of {TASK.length}, segments of {SEGMENT}; 2 layers "
        "of width 64, 4 heads, 250 steps of 8; the paper models images pixel by pixel and long texts",
        figures=[Figure.of(TASK.metric_name, found, "loss", ours="combiner fixed")],
        criteria=[
            quality("Combiner's loss beside that of its segments alone", ours - alone, at_most=0.0),
            quality("Combiner's loss beside that of fixed sparse attention", ours - sparse, at_most=0.0),
            quality("Combiner's loss over that of full attention", ours / full, at_most=1.05),
            exact("rows of the implied matrices sum to 1", matrix["rows"], at_most=1e-9),
            exact("the least weight within reach", matrix["least"], at_least=1e-12),
            exact("the most weight ahead", matrix["ahead"], at_most=0.0),
            *(cost(f"{form}: exponent of operations", grows[form], at_most=1.65) for form in FORMS),
        ],
    )
