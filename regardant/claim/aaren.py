"""Is a learned query as good as the current token's, at constant memory?

Aaren against causal softmax on digits read row by row and on sums of sines. A fixed query cannot look
things up by the current token, so recall is not asked of it.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.sequence.aaren import scan_attention
from regardant.task.digits import DigitRows
from regardant.task.forecast import Forecast
from regardant.train.fit import evaluate
from regardant.train.model import Classifier, VectorModel

DIGITS, SINES = DigitRows(), Forecast()
LENGTHS = (64, 512, 4096)


def trained(system: str):
    def unit(run):
        mixers = [partial(create, system, dim=64, heads=4, causal=True)] * 2
        reader = partial(Classifier, DIGITS.features, DIGITS.classes, mixers, dim=64, size=(8,))
        reads = run.fit(reader, DIGITS, steps=800, batch=64)
        seer = partial(VectorModel, 1, SINES.horizon, mixers, dim=64, size=(SINES.length,))
        foresees = run.fit(seer, SINES, steps=1200, batch=32)
        return {"accuracy": evaluate(reads, DIGITS), "error": evaluate(foresees, SINES)}

    return unit


@torch.no_grad()
def exactness() -> dict[str, float]:
    """The scan against the masked softmax, in float32 with scores of ±80; and the sizes of the states."""
    generator = torch.Generator().manual_seed(0)
    scores = 160 * torch.rand(2, 3, 257, generator=generator) - 80
    values = torch.randn(2, 3, 257, 8, generator=generator)
    future = torch.ones(257, 257, dtype=torch.bool).triu(1)
    plain = scores[..., None, :].double().expand(-1, -1, 257, -1).masked_fill(future, float("-inf"))
    difference = scan_attention(scores, values)[0] - plain.softmax(dim=-1) @ values.double()
    held = {name: [state_bytes(name, n) for n in LENGTHS] for name in ("aaren", "softmax")}
    growth = {name: sizes[-1] / sizes[0] for name, sizes in held.items()}
    return {"difference": difference.abs().max().item(), **growth}


def state_bytes(system: str, length: int) -> int:
    layer = create(system, dim=64, heads=4, causal=True)
    return layer.prefill(torch.zeros(1, length, 64))[1].nbytes


def claim(context: Context) -> Outcome:
    checked = context.check("exactness", exactness)
    found = context.measure({name: trained(name) for name in ("aaren", "softmax")})
    aaren, softmax = found["aaren"], found["softmax"]
    accuracy = aaren["accuracy"].mean - softmax["accuracy"].mean
    error = aaren["error"].mean / softmax["error"].mean
    return Outcome(
        setting="digits as 8 rows (800 steps of 64) and sums of sines, 8 values ahead of 64 (1200 steps of "
        "32); 2 layers, width 64, 4 heads; the paper has 38 data sets",
        figures=[
            Figure.of("accuracy on digits by rows", found, "accuracy", ours="aaren"),
            Figure.of("mean squared error on sums of sines", found, "error", ours="aaren"),
        ],
        criteria=[
            quality("at most 3 points of accuracy below softmax", accuracy, at_least=-0.03),
            quality("at most 10 % more squared error than softmax", error, at_most=1.1),
            cost("the state is as large behind 4096 tokens as behind 64", checked["aaren"], at_most=1.0),
            cost("softmax's cache is 64 times as large there", checked["softmax"], at_least=64.0),
            exact("scan and masked softmax agree at scores of ±80", checked["difference"], at_most=1e-5),
        ],
    )
