"""Does span search reach what a window of the same cost cannot, and does its cost grow as n^1.5?

Recall of pairs that stand farther back than a window of as many keys as a query's spans and window hold:
one layer of attention above a short convolution that sums up a few tokens, with span search, with that
window, and with full attention. And, by counting alone, the keys that are touched and the coverage.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.compare.growth import fit as fit_growth
from regardant.task.recall import Recall
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

SPANS, STRIPES = 2, 1
TASK = Recall(vocabulary=80, length=64, pairs=4, wait=20)
TOUCHED = 37
"""What the last query attends to: a window of 3 and two spans of 17."""
LENGTHS = tuple(2**power for power in range(10, 19))


class ShortConvolution(nn.Module):
    """Each channel's last four tokens, weighed, and a projection."""

    def __init__(self, dim: int, width: int = 4):
        super().__init__()
        self.weigh = nn.Conv1d(dim, dim, width, padding=width - 1, groups=dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self.to_out(self.weigh(x.mT)[..., : x.shape[1]].mT)


def trained(system: str, **own):
    def unit(run):
        attention = partial(create, system, dim=64, heads=2, causal=True, **own)
        mixers = [partial(ShortConvolution, 64), attention]
        make = partial(TokenModel, TASK.vocabulary, mixers, dim=64, length=TASK.length, expansion=0)
        model = run.fit(make, TASK, steps=1000, batch=16, learning_rate=5e-3)
        return {"accuracy": evaluate(model, TASK)}

    return unit


def touched() -> dict[str, float]:
    """The exponent of the keys scored and read by all queries together, at the default configuration."""
    layer, counts = create("superlinear", dim=8, heads=1), []
    for n in LENGTHS:
        at = torch.arange(n)
        first, _ = layer.spans_of(at, at[:, None])  # as if no span met the start: an upper bound
        width = (at - first[:, 0] + 1).double()
        anchors = torch.bucketize(at, torch.tensor(layer.shifts(n)), right=True)
        counts.append((anchors + layer.spans * width + (at + 1).clamp(max=layer.window)).sum().item())
    return {"exponent": fit_growth(LENGTHS, counts).exponent}


def holes(queries: int = 4000) -> dict[str, float]:
    """Past tokens that lie in no candidate span and not in the window, over all queries."""
    layer, missed = create("superlinear", dim=8, heads=1), 0
    for t in range(queries):
        seen = torch.zeros(t + 1, dtype=torch.bool)
        seen[max(t + 1 - layer.window, 0) :] = True
        anchors = t - torch.tensor(layer.shifts(t + 1), dtype=torch.long)
        first, last = layer.spans_of(torch.tensor([t]), anchors[None])
        for begin, end in zip(first[0].tolist(), last[0].tolist()):
            seen[begin : end + 1] = True
        missed += int((~seen).sum())
    return {"missed": missed}


@torch.no_grad()
def stepping() -> dict[str, float]:
    with seeded(0):
        layer = create("superlinear", dim=64, heads=2)
        x = torch.randn(1, 300, 64)
    state, outputs = layer.start(1), []
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state)
        outputs.append(y)
    return {"difference": (torch.stack(outputs, 1) - layer(x)).abs().max().item()}


def claim(context: Context) -> Outcome:
    growth = context.check("touched keys", touched)
    coverage = context.check("coverage", holes)
    steps = context.check("stepping", stepping)
    found = context.measure(
        {
            "span search": trained("superlinear", spans=SPANS, stripes=STRIPES),
            "window of the same size": trained("sliding-window", window=TOUCHED),
            "softmax": trained("softmax"),
        }
    )
    ours, window, full = (found[name]["accuracy"].mean for name in found)
    return Outcome(
        setting="multi-query associative recall of 4 pairs in 64 tokens, none nearer than 41; a convolution "
        "of width 4 and one attention layer of width 64, 2 heads; 2 spans and a window of 3 tokens, at most "
        f"{TOUCHED} keys a query; 1000 steps of 16; the paper tunes a 30B hybrid model",
        figures=[Figure.of("accuracy at repeated keys", found, "accuracy", ours="span search")],
        criteria=[
            quality(
                "span search recalls at least 30 points more than the window", ours - window, at_least=0.3
            ),
            quality("span search is at most 10 points behind softmax", full - ours, at_most=0.1),
            cost("touched keys grow as n^1.5, ± 0.03", abs(growth["exponent"] - 1.5), at_most=0.03),
            exact("past tokens without a span, queries 0 to 3999", coverage["missed"], at_most=0),
            exact("stepping equals forward in float32", steps["difference"], at_most=1e-5),
        ],
    )
