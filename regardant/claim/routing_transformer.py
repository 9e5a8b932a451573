"""Does routing by content find what a window cannot reach?

Recall of pairs that stand farther back than two stacked windows, with half of the heads routed, against
windows of the same size on all heads. And the growth of the counted work with clusters of √n tokens.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops
from regardant.claim.outcome import Figure, Outcome, cost, quality
from regardant.compare.growth import fit as fit_growth
from regardant.task.recall import Recall
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel

WINDOW = 16
TASK = Recall(vocabulary=160, length=128, pairs=4, wait=WINDOW)
"""The nearest repeated key stands 33 tokens behind its pair; two windows of 16 reach 30."""
LENGTHS = (256, 576, 1024, 2304, 4096)


def trained(mixer):
    def unit(run):
        mixers = [partial(mixer, dim=64, heads=4, causal=True)] * 2
        make = partial(TokenModel, TASK.vocabulary, mixers, dim=64, length=TASK.length, expansion=0)
        model = run.fit(make, TASK, steps=1000, batch=32, learning_rate=3e-3)
        return {"accuracy": evaluate(model, TASK)}

    return unit


@torch.no_grad()
def growth() -> dict[str, float]:
    """The exponent of assignment and attention, for each way to choose members; projections left out."""
    found = {}
    for membership in ("balanced", "nearest"):
        counted = []
        for n in LENGTHS:
            own = {"length": n, "local_heads": 0, "membership": membership}
            layer = create("routing-transformer", dim=64, heads=4, causal=True, **own)
            x = torch.randn(1, n, 64, generator=torch.Generator().manual_seed(n))
            projections = sum(2 * weight.numel() * n for weight in layer.parameters() if weight.ndim == 2)
            counted.append(flops(partial(layer, x)) - projections)
        found[membership] = fit_growth(LENGTHS, counted).exponent
    return found


def claim(context: Context) -> Outcome:
    grows = context.check("growth", growth)
    clusters = {"length": TASK.length, "window": WINDOW, "clusters": TASK.length // WINDOW}
    routed = partial(create, "routing-transformer", local_heads=2, **clusters)
    found = context.measure(
        {
            "half routed": trained(routed),
            "all local": trained(partial(create, "sliding-window", window=WINDOW)),
            "softmax": trained(partial(create, "softmax")),
        }
    )
    gain = found["half routed"]["accuracy"].mean - found["all local"]["accuracy"].mean
    return Outcome(
        setting="multi-query associative recall of 4 pairs in 128 tokens, none nearer than 33; 2 layers of "
        f"width 64, 4 heads, window {WINDOW}, nearest membership, 1000 steps of 32; "
        "the paper models WikiText-103",
        figures=[Figure.of("accuracy at repeated keys", found, "accuracy", ours="half routed")],
        criteria=[
            quality("half routed recalls at least 30 points more than all local", gain, at_least=0.3),
            cost("balanced: operations grow as n^1.5, ± 0.1", abs(grows["balanced"] - 1.5), at_most=0.1),
            cost("nearest: operations grow as n^1.5, ± 0.1", abs(grows["nearest"] - 1.5), at_most=0.1),
        ],
    )
