"""Does a memory that learns while it reads reach where a window cannot?

Associative recall, every key asked at least ten tokens behind its pair, with attention over eight tokens:
alone, beside a neural memory (MAG), and with a memory as context (MAC). Then keys that are written twice:
does the memory need momentum and forgetting to say the later value?
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.core.surprise import Gates, MemoryState, memorise, recall
from regardant.task.held_out import validation_generator
from regardant.task.recall import Recall
from regardant.task.score import IGNORED, hits, label_loss
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

TASK = Recall(vocabulary=40, length=36, pairs=3, wait=5)
MEMORY = dict(dim=64, heads=2, depth=1)


@dataclass(frozen=True)
class Overwritten:
    """Four keys with a value each, the same keys with other values, and then the keys: which came last?"""

    vocabulary: int = 64
    pairs: int = 4
    held_out: int = 512

    name: ClassVar[str] = "overwritten associative recall"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    @property
    def length(self) -> int:
        return 6 * self.pairs

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        half = self.vocabulary // 2
        keys = 1 + torch.rand(size, half - 1, generator=generator).topk(self.pairs).indices
        values = half + torch.rand(size, half, generator=generator).topk(2 * self.pairs).indices
        first, second = values.chunk(2, dim=1)
        order = torch.rand(size, self.pairs, generator=generator).argsort()
        asked, right = keys.gather(1, order), second.gather(1, order)
        parts = [
            torch.stack(pair, dim=2).flatten(1) for pair in ((keys, first), (keys, second), (asked, right))
        ]
        labels = torch.full((size, self.length), IGNORED)
        labels[:, 4 * self.pairs :: 2] = right
        return torch.cat(parts, dim=1), labels

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        tokens, labels = self.batch(self.held_out, validation_generator())
        yield from zip(tokens.split(64), labels.split(64))

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


def trained(system: str, task, **own):
    def unit(run):
        mixers = [partial(create, system, causal=True, **own)]
        make = partial(TokenModel, task.vocabulary, mixers, dim=64, length=task.length, expansion=0)
        model = run.fit(make, task, steps=600, batch=32, learning_rate=1e-2)
        return {"accuracy": evaluate(model, task)}

    return unit


@torch.no_grad()
def states() -> dict[str, float]:
    """How much larger a decoding state is behind 2048 tokens than behind 512."""
    found = {}
    for system in ("neural-memory", "titans-mag", "titans-mal", "titans-mac"):
        with seeded(0):
            layer = create(system, dim=32, heads=2)
            x = torch.randn(1, 2048, 32)
        _, early = layer.prefill(x[:, :512])
        _, late = layer.prefill(x)
        found[system] = late.nbytes / early.nbytes
    return found


@torch.no_grad()
def writing() -> dict[str, float]:
    """The error ‖M(k) - v‖² behind sixteen writes, as a share of the error before; and with chunks of one
    token, how far the chunked form is from a loop over W ← (1 - α) W + S written out."""
    with seeded(0):
        k, v = (torch.randn(4, 2, 16, 16, dtype=torch.float64) for _ in range(2))
        weights = [
            torch.randn(2, 16, 32, dtype=torch.float64) / 4,
            torch.randn(2, 32, 16, dtype=torch.float64) / 6,
        ]
        rate, keep, stay = torch.rand(3, 4, 2, 16, dtype=torch.float64)
    k = k / k.norm(dim=-1, keepdim=True)
    state = MemoryState.of(weights, 4, momentum=True)
    gates = Gates(0.1 * rate, torch.zeros_like(keep), stay.log())
    _, after = memorise(k, k, v, gates, state, chunk=4)
    errors = [(recall(each.weights, k) - v).square().sum().item() for each in (state, after)]
    linear = MemoryState.of([weights[0][..., :16]], 4, momentum=True)
    out, _ = memorise(k, k, v, replace(gates, log_keep=keep.log()), linear, chunk=1)
    matrix, moved, worst = linear.weights[0], torch.zeros_like(linear.weights[0]), 0.0
    for t in range(16):
        row, said = k[:, :, t : t + 1], v[:, :, t : t + 1]
        slope = 2 * row.mT @ (row @ matrix - said)
        moved = stay[..., t, None, None] * moved - 0.1 * rate[..., t, None, None] * slope
        matrix = keep[..., t, None, None] * matrix + moved
        worst = max(worst, (out[:, :, t : t + 1] - row @ matrix).abs().max().item())
    return {"left": errors[1] / errors[0], "difference": worst}


def claim(context: Context) -> Outcome:
    grown, written = context.check("states", states), context.check("writing", writing)
    found = context.measure(
        {
            "window": trained("sliding-window", TASK, dim=64, heads=2, window=8),
            "mag": trained("titans-mag", TASK, window=8, **MEMORY),
            "mac": trained("titans-mac", TASK, segment=12, **MEMORY),
        }
    )
    twice = context.measure(
        {
            "memory": trained("neural-memory", Overwritten(), **MEMORY),
            "plain gradient steps": trained(
                "neural-memory", Overwritten(), momentum=False, forgetting=False, **MEMORY
            ),
        }
    )
    near = found["window"]["accuracy"].mean
    ahead = {name: found[name]["accuracy"].mean - near for name in ("mag", "mac")}
    kept = twice["memory"]["accuracy"].mean - twice["plain gradient steps"]["accuracy"].mean
    return Outcome(
        setting="recall of 3 pairs in 36 tokens, asked 10 tokens behind their pair or later, and of 4 keys "
        "written twice in 24; one layer of width 64 with 2 heads and no MLP, memories of one matrix a head, "
        "chunks of 16, window 8, segments of 12, 600 steps of 32; the paper trains models of 170M to 760M on "
        "text",
        figures=[
            Figure.of("accuracy beyond the window", found, "accuracy", ours=("mag", "mac")),
            Figure.of("accuracy on keys written twice", twice, "accuracy", ours="memory"),
        ],
        criteria=[
            quality("MAG recalls at least 30 points more than its window alone", ahead["mag"], at_least=0.3),
            quality("MAC recalls at least 30 points more than the window", ahead["mac"], at_least=0.3),
            quality("momentum and forgetting lose nothing on keys written twice", kept, at_least=0.0),
            quality("writing 16 pairs lowers the memory's error on them", written["left"], at_most=0.9),
            cost("decoding states do not grow from 512 to 2048 tokens", max(grown.values()), at_most=1.0),
            exact("chunks of one token are the recurrence", written["difference"], at_most=1e-5),
        ],
    )
