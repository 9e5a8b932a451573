"""Can inner layers that attend alike share their attention at little loss?

A byte model of six layers, trained; two pairs of neighbouring layers share: those that attend most alike
among the inner ones, or the pairs at both ends. Then the first kind goes on training for a while, and so
does the dense model.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.sequence.echoatt import attention_similarity, share_attention
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel

LAYERS, DIM, HEADS = 6, 64, 4
TASK = Bytes(length=96)
ENDS = [[0, 1], [LAYERS - 2, LAYERS - 1]]


def alike(similar: torch.Tensor) -> list[list[int]]:
    """Two pairs of inner neighbours without a layer in common, together as alike as can be."""
    first = range(1, LAYERS - 2)
    pairs = [(a, b) for a in first for b in first if b >= a + 2]
    a, b = max(pairs, key=lambda pair: sum(float(similar[each, each + 1]) for each in pair))
    return [[a, a + 1], [b, b + 1]]


def mean(similar: torch.Tensor, pairs: list[tuple[int, int]]) -> float:
    return sum(float(similar[pair]) for pair in pairs) / len(pairs)


def trained(run) -> dict[str, float]:
    mixers = [partial(create, "softmax", dim=DIM, heads=HEADS, causal=True)] * LAYERS
    make = partial(TokenModel, TASK.vocabulary, mixers, dim=DIM, length=TASK.length, expansion=2)
    dense = run.fit(make, TASK, steps=350, batch=16, learning_rate=2e-3)
    sample = next(iter(TASK.validation()))[0][:8]
    similar, bare = (attention_similarity(dense, sample, without_first=each) for each in (False, True))
    inner = [(layer, layer + 1) for layer in range(1, LAYERS - 2)]
    outer = [(layer, end) for layer in range(1, LAYERS - 1) for end in (0, LAYERS - 1)]
    found = {"inner": mean(similar, inner), "outer": mean(similar, outer), "bare": mean(bare, inner)}
    found["dense"] = evaluate(dense, TASK)
    shared = share_attention(dense, alike(similar))
    found["alike"] = evaluate(shared, TASK)
    found["ends"] = evaluate(share_attention(dense, ENDS), TASK)
    went_on = run.fit(lambda: shared, TASK, steps=80, batch=16, learning_rate=5e-4)
    found["alike, trained on"] = evaluate(went_on, TASK)
    rest = run.fit(lambda: dense, TASK, steps=80, batch=16, learning_rate=5e-4)
    found["dense, trained on"] = evaluate(rest, TASK)
    sizes = [sum(weight.numel() for weight in model.parameters()) for model in (rest, shared)]
    return found | {"gone": sizes[0] - sizes[1], "share gone": 1 - sizes[1] / sizes[0]}


def claim(context: Context) -> Outcome:
    found = context.measure({"six layers": trained})["six layers"]
    rise = {name: found[name].mean - found["dense"].mean for name in ("alike", "ends")}
    gap = found["alike"].mean - found["dense, trained on"].mean
    left = found["alike, trained on"].mean - found["dense, trained on"].mean
    return Outcome(
        setting=f"bytes of the standard library, windows of {TASK.length}; {LAYERS} layers, width {DIM}, "
        f"{HEADS} heads, 350 steps of 16; two pairs share, then 80 steps on the true next byte alone, no "
        "distillation; the paper distils TinyLLaMA-1.1B",
        figures=[
            Figure(
                TASK.metric_name,
                {name: found[name] for name in ("alike", "alike, trained on")},
                {name: found[name] for name in ("ends", "dense", "dense, trained on")},
            ),
            Figure(
                "similarity of neighbouring inner layers",
                {"inner": found["inner"]}, {"to the ends": found["outer"]},
            ),
            Figure("share of parameters gone", {"alike": found["share gone"]}),
        ],
        criteria=[
            quality(
                "inner neighbours are more alike than inner layers and ends",
                found["inner"].mean - found["outer"].mean, at_least=0.0,
            ),
            quality(
                "sharing alike layers costs at most half of sharing at the ends",
                rise["alike"] - rise["ends"] / 2, at_most=0.0,
            ),
            quality("training on makes up half of the loss of sharing", left - gap / 2, at_most=0.0),
            exact(
                "two layers lose their queries and keys, no more",
                found["gone"].mean - 2 * 2 * DIM * DIM, at_most=0.0,
            ),
        ],
        notes=[
            "similarity of neighbouring inner layers without the first column: "
            f"{found['bare'].mean:.3f}",
            "two of six layers compute no scores: a third of the multiply-adds of scores is saved",
        ],
    )  # fmt: skip
