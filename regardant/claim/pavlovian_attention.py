"""How many pairs does a matrix hold, and does it behave like a conditioned animal?

No training: random unit keys of 64 to 2048 dimensions, written by the rules; the paper is a theory. Its
capacity √d is that of the worst case; the average case, which is often quoted for it, is measured apart.
"""

import math
from functools import partial

import torch
from torch.nn.functional import normalize

from regardant.claim.context import Context, Run
from regardant.claim.outcome import Figure, Outcome, quality
from regardant.structure.associative_memory import (
    AssociativeMemory,
    blocking,
    capacity,
    extinction,
    mean_interference,
    worst_interference,
)

WIDTHS = (64, 128, 256, 512, 1024, 2048)
HEADS = (1, 4, 16)
RULES = {"hebb": {}, "decay": {"forget": 0.2}, "delta": {"rate": 0.5}}


def slope(x: tuple[int, ...], y: list[float]) -> float:
    """The exponent of a power law through the points, by least squares on logarithms."""
    points = torch.tensor([x, y], dtype=torch.float64).log()
    centred = points - points.mean(1, keepdim=True)
    return float((centred[0] * centred[1]).sum() / centred[0].square().sum())


def laws(run: Run) -> dict[str, float]:
    """Exponents of both capacities in the width, and of the error in the number of heads."""
    generator = torch.Generator().manual_seed(run.seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    worst = [capacity(d, worst_interference, generator=generator, draws=20) for d in WIDTHS]
    mean = [capacity(d, mean_interference, generator=generator, draws=3) for d in WIDTHS]
    errors = []
    for heads in HEADS:
        keys, values = normalize(draw(heads, 64, 64), dim=-1), draw(64, 64)
        said = (keys @ (keys.mT @ values)).mean(0)
        errors.append(float((said - values).norm() / values.norm()))
    return {
        "worst": slope(WIDTHS, worst), "mean": slope(WIDTHS, mean), "heads": slope(HEADS, errors),
        "pairs, worst": worst[-1], "pairs, mean": mean[-1],
    }  # fmt: skip


def behaviour(rule: str):
    """What is left of blocked learning and of an extinguished response; recall of 64 pairs in one pass."""

    def unit(run: Run) -> dict[str, float]:
        generator = torch.Generator().manual_seed(run.seed)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        known, added = torch.linalg.qr(draw(64, 2)).Q.mT
        outcome = draw(16)
        memory = AssociativeMemory(64, 16, rule=rule, **RULES[rule])
        after, control = blocking(memory, known, added, outcome, 20)
        lost = extinction(memory, known, outcome, trials=20, without=20)
        keys, values = (
            normalize(draw(8, 64, 64), dim=-1),
            torch.eye(64, dtype=torch.float64).expand(8, -1, -1),
        )
        store, state = AssociativeMemory(64, 64, rule=rule, **RULES[rule]), torch.zeros(8, 64, 64).double()
        for t in range(64):
            state = store.write(state, keys[:, t], values[:, t])
        found = (keys @ state - values).square().mean().sqrt() / values.square().mean().sqrt()
        recalled = ((keys @ state).argmax(-1) == torch.arange(64)).double().mean()
        return {
            "blocked": after / control, "left": lost[-1] / lost[0],
            "recall": float(recalled), "error": float(found),
        }  # fmt: skip

    return unit


def claim(context: Context) -> Outcome:
    law = context.measure({"capacity": laws})["capacity"]
    found = context.measure({rule: behaviour(rule) for rule in RULES})
    less = found["hebb"]["error"].mean - found["delta"]["error"].mean
    return Outcome(
        setting="random unit keys of 64 to 2048 dimensions; the most pairs whose interference stays below a "
        "half; 64 pairs in 64 dimensions for heads and recall, 20 trials for conditioning; no training",
        figures=[
            Figure("exponent of the worst-case capacity in the width", {"hebb": law["worst"]}),
            Figure("exponent of the mean capacity in the width", {"hebb": law["mean"]}),
            Figure("exponent of the error in the number of heads", {"hebb": law["heads"]}),
            Figure("pairs at 2048 dimensions, worst case", {"hebb": law["pairs, worst"]}),
            Figure("pairs at 2048 dimensions, mean", {"hebb": law["pairs, mean"]}),
            Figure.of(
                "response to a blocked stimulus, of control", found, "blocked", ours=("decay", "delta")
            ),
            Figure.of("response left by extinction", found, "left", ours=("decay", "delta")),
            Figure.of("recall of 64 pairs in 64 dimensions", found, "recall", ours=("decay", "delta")),
            Figure.of("their relative error", found, "error", ours=("decay", "delta")),
        ],
        criteria=[
            quality("worst-case capacity grows as √d", abs(law["worst"].mean - 0.5), at_most=0.1),
            quality("mean capacity grows as d", abs(law["mean"].mean - 1), at_most=0.1),
            quality(
                "heads lower the error as one over their root", abs(law["heads"].mean + 0.5), at_most=0.1
            ),
            quality("the delta rule blocks", found["delta"]["blocked"].mean, at_most=0.1),
            quality("Hebb's rule does not", abs(math.log(found["hebb"]["blocked"].mean)), at_most=0.1),
            quality("the delta rule extinguishes", found["delta"]["left"].mean, at_most=0.1),
            quality("decay extinguishes", found["decay"]["left"].mean, at_most=0.1),
            quality("Hebb's rule does not extinguish", found["hebb"]["left"].mean, at_least=0.9),
            quality("the delta rule errs less than Hebb's on d pairs", less, at_least=0.0),
        ],
        notes=["√d is a law of the worst case; on average a matrix holds in proportion to d."],
    )
