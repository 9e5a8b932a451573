"""Is a mixture of whole copies better than one of their feed-forward layers alone?

A seed model reads three kinds of text; each copy of it goes on with one kind; then the copies and the seed
are mixed, with attention experts on keys of their own, on shared keys, or with one mean attention (Branch-
Train-MiX), and trained on everything, on equally much.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from regardant.claim.context import Context
from regardant.claim.count import flops
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.averaged import averaged
from regardant.structure.bam_upcycling import VARIANTS, ParallelTransformer, upcycle
from regardant.task.bytes import Bytes
from regardant.task.held_out import validation_generator
from regardant.task.score import label_loss, summed_label_loss
from regardant.train.fit import evaluate, seeded

LENGTH = 64
SOURCE = Bytes(length=LENGTH)


def sums(count: int, generator: torch.Generator) -> Tensor:
    """Lines such as 12+34=046."""
    pair = torch.randint(100, (count, 2), generator=generator)
    total = pair.sum(1)
    digits = [pair[:, 0] // 10, pair[:, 0] % 10, pair[:, 1] // 10, pair[:, 1] % 10]
    a, b, c, d, *rest = (each + ord("0") for each in [*digits, total // 100, total // 10 % 10, total % 10])
    signs = (torch.full((count,), ord(sign)) for sign in "+=\n")
    plus, equals, end = signs
    return torch.stack([a, b, plus, c, d, equals, *rest, end], dim=1)


def mirrors(count: int, generator: torch.Generator) -> Tensor:
    """Lines such as abcde|edcba."""
    word = torch.randint(ord("a"), ord("z") + 1, (count, 5), generator=generator)
    bar, end = (torch.full((count, 1), ord(sign)) for sign in "|\n")
    return torch.cat([word, bar, word.flip(1), end], dim=1)


KINDS = {"source": None, "sums": sums, "mirrors": mirrors}


@dataclass(frozen=True)
class Text:
    """Predict the next byte of some kinds of text."""

    kinds: tuple[str, ...]

    metric_name: ClassVar[str] = "validation loss, bits a byte"
    higher_is_better: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "text: " + ", ".join(self.kinds)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        parts = [self._draw(kind, -(-size // len(self.kinds)), generator) for kind in self.kinds]
        return tuple(torch.cat(each)[:size] for each in zip(*parts))

    def _draw(self, kind: str, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if kind == "source":
            return SOURCE.batch(size, generator)
        lines = KINDS[kind](size * (LENGTH // 10 + 3), generator)
        text = lines.view(size, -1)
        start = torch.randint(lines.shape[1], (size, 1), generator=generator)
        text = text.gather(1, start + torch.arange(LENGTH + 1))
        return text[:, :-1], text[:, 1:]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = validation_generator()
        for kind in self.kinds:
            yield from SOURCE.validation() if kind == "source" else [self._draw(kind, 256, generator)]

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        total, count = summed_label_loss(outputs, targets)
        return total / log(2), count

    loss = staticmethod(label_loss)


ALL = Text(tuple(KINDS))
make = partial(ParallelTransformer, 256, 64, 4, expansion=2)


def mixed(run) -> dict[str, float]:
    """The mean over the kinds of text, of the averaged weights and of each mixture."""
    seed = run.fit(make, ALL, steps=250, batch=18, learning_rate=2e-3)
    copies = [seed]
    for kind in KINDS:
        start = seed.state_dict()

        def branched(start=start):
            copy = make()
            copy.load_state_dict(start)
            return copy

        copies.append(run.fit(branched, Text((kind,)), steps=200, batch=16, learning_rate=1e-3))
    found = {"average": mean_loss(averaged(copies)), "seed": mean_loss(seed)}
    for variant in VARIANTS:
        model = run.fit(
            partial(upcycle, copies, variant=variant), ALL, steps=150, batch=18, learning_rate=1e-3
        )
        found[variant] = mean_loss(model)
    return found


def mean_loss(model: torch.nn.Module) -> float:
    return sum(evaluate(model, Text((kind,))) for kind in KINDS) / len(KINDS)


@torch.no_grad()
def copies_alike() -> dict[str, float]:
    """Mixtures of one model four times, all experts running, against that model; and operations a token."""
    with seeded(0):
        model = make().double()
        tokens = torch.randint(256, (2, LENGTH))
    found = {"off": 0.0, "dense": flops(partial(model, tokens)) / tokens.numel()}
    for variant in VARIANTS:
        alike = upcycle([model] * 4, variant=variant, top_k=4)
        found["off"] = max(found["off"], (alike(tokens) - model(tokens)).abs().max().item())
        sparse = upcycle([model] * 4, variant=variant)
        found[variant] = flops(partial(sparse, tokens)) / tokens.numel()
    return found


def claim(context: Context) -> Outcome:
    checked = context.check("copies alike", copies_alike)
    found = context.measure({"mixtures": mixed})["mixtures"]
    full, shared, btx, average = (found[name].mean for name in ("full", "kv_shared", "btx", "average"))
    ours = {name: found[name] for name in ("full", "kv_shared")}
    spent = {name: checked[name] / 1e3 for name in ("full", "kv_shared", "btx", "dense")}
    return Outcome(
        setting="bytes of the standard library, of sums and of mirrored words; 2 parallel blocks, width 64, "
        "4 heads, windows of 64; a seed of 250 steps, three copies of 200 steps each on one kind, mixtures "
        "of the four of 150 steps, top-1; the paper mixes models of 590M and 2B",
        figures=[
            Figure(ALL.metric_name, ours, {name: found[name] for name in ("btx", "average", "seed")}),
            Figure.once(
                "thousand operations a token", {name: spent[name] for name in ours},
                {name: spent[name] for name in ("btx", "dense")},
            ),
        ],
        criteria=[
            quality("attention experts: at most the loss of Branch-Train-MiX", full - btx, at_most=0.0),
            quality("with shared keys: at most the loss of Branch-Train-MiX", shared - btx, at_most=0.0),
            quality("keys of their own: at most the loss of shared keys", full - shared, at_most=0.0),
            quality("all are below the averaged weights", max(full, shared, btx) - average, at_most=0.0),
            exact("like copies, all running, are the dense model", checked["off"], at_most=1e-9),
        ],
        notes=["the mixtures see equally much text; attention experts take more operations for it"],
    )  # fmt: skip
