"""What does a window cost, and what does it lose? Counted work and state, and recall by distance.

The cost should be linear in the length and the decoding state constant; recall should hold inside the
window and be lost beyond what the stacked windows reach, where softmax still has it.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops
from regardant.claim.outcome import Figure, Outcome, cost, quality
from regardant.compare.growth import fit as fit_growth
from regardant.task.recall import Recall, distances
from regardant.task.score import hits
from regardant.train.model import TokenModel

TASK = Recall(vocabulary=128, length=64, pairs=4)
WINDOW = 16
LENGTHS = (1024, 2048, 4096, 8192)


def trained(system: str, **own):
    def unit(run):
        mixers = [partial(create, system, dim=64, heads=1, causal=True, **own)] * 2
        make = partial(TokenModel, TASK.vocabulary, mixers, dim=64, length=TASK.length, expansion=0)
        model = run.fit(make, TASK, steps=1000, batch=64, learning_rate=3e-3)
        return {"inside": recall(model, 0, WINDOW - 2), "beyond": recall(model, 2 * WINDOW, TASK.length)}

    return unit


@torch.no_grad()
def recall(model: TokenModel, nearest: int, farthest: int) -> float:
    """The accuracy at keys whose pair stands so far back."""
    scores = []
    for tokens, labels in TASK.validation():
        away = distances(tokens, TASK.pairs)
        scores.append(hits(model(tokens), labels, (away >= nearest) & (away <= farthest)))
    right, asked = map(sum, zip(*scores))
    return (right / asked).item()


@torch.no_grad()
def counted() -> dict[str, float]:
    layer = create("sliding-window", dim=64, heads=2, causal=True, window=WINDOW)
    counted = [flops(lambda n=n: layer(torch.zeros(1, n, 64))) for n in LENGTHS]
    held = [layer.prefill(torch.zeros(1, n, 64))[1].nbytes for n in LENGTHS]
    return {"exponent": fit_growth(LENGTHS, counted).exponent, "state": max(held) / min(held)}


def claim(context: Context) -> Outcome:
    grows = context.check("cost", counted)
    found = context.measure(
        {"window": trained("sliding-window", window=WINDOW), "softmax": trained("softmax")}
    )
    inside = found["window"]["inside"].mean
    lost = found["softmax"]["beyond"].mean - found["window"]["beyond"].mean
    return Outcome(
        setting="counted at 1024 to 8192 tokens; multi-query associative recall of 4 pairs in 64 tokens, 2 "
        f"layers, width 64, window {WINDOW}, 1000 steps of 64 sequences",
        figures=[
            Figure.of(f"accuracy, pair at most {WINDOW - 2} back", found, "inside", ours="window"),
            Figure.of(f"accuracy, pair at least {2 * WINDOW} back", found, "beyond", ours="window"),
        ],
        criteria=[
            cost("counted operations grow at most as n^1.1", grows["exponent"], at_most=1.1),
            cost("the decoding state is as large at 8192 tokens as at 1024", grows["state"], at_most=1.0),
            quality("inside the window 90 % is recalled", inside, at_least=0.9),
            quality("beyond two windows at least 30 points are lost to softmax", lost, at_least=0.3),
        ],
        notes=["Text8 and enwik8, the paper's benchmarks, are out of reach here."],
    )
