"""Do heads with different spans reach farther than heads with equal ones, at the same mean span?

Retrieval of what stands 40 tokens back, where two uniform spans do not reach, one head of four looking far
(dense attention says that the task is learned in that time); and bytes at a mean span
of an eighth of the window, against uniform spans and dense attention. Models are trained with their spans
from the start: the search for a pretrained model's spans is not part of this.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.task.bytes import Bytes
from regardant.task.held_out import validation_generator
from regardant.task.score import IGNORED, hits, label_loss
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel

PERIOD, LENGTH, SYMBOLS = 40, 96, 32


@dataclass(frozen=True)
class Repeats:
    """Random symbols that come again after 40 tokens: from then on, which one is next?"""

    name: ClassVar[str] = "repeats of 40 symbols"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        once = torch.randint(SYMBOLS, (size, PERIOD), generator=generator)
        tokens = once.repeat(1, 3)[:, : LENGTH + 1]
        labels = tokens[:, 1:].clone()
        labels[:, : PERIOD - 1] = IGNORED
        return tokens[:, :-1], labels

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.batch(256, validation_generator())

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


TASK = Repeats()
"""The symbol to find stands 39 tokens before the query; two spans of 16, one over the other, reach 30."""
TEXT = Bytes(length=128)
SPANS = {"mixed": [8, 8, 4, 44], "uniform": 16}


def spans(alpha, block: int = 2):
    return partial(create, "moa-mixture-of-sparse-attention", alpha=alpha, block=block)


def retrieval(mixer):
    def unit(run):
        mixers = [partial(mixer, dim=64, heads=4, causal=True, position="rotary")] * 2
        model = run.fit(
            partial(TokenModel, SYMBOLS, mixers, dim=64, expansion=0), TASK, steps=300, batch=16,
            learning_rate=3e-3,
        )  # fmt: skip
        return {"accuracy": evaluate(model, TASK)}

    return unit


def text(mixer):
    def unit(run):
        mixers = [partial(mixer, dim=64, heads=4, causal=True)] * 2
        make = partial(TokenModel, TEXT.vocabulary, mixers, dim=64, length=TEXT.length, expansion=2)
        model = run.fit(make, TEXT, steps=200, batch=16, learning_rate=2e-3)
        return {"loss": evaluate(model, TEXT)}

    return unit


@torch.no_grad()
def counted() -> dict[str, float]:
    """Kept keys and attention's operations, as shares of the dense ones, at 4,096 tokens."""
    n, alpha = 4096, [64, 64, 128, 768]
    layer = spans(alpha, block=64)(dim=64, heads=4, causal=True)
    q = torch.zeros(1, 4, n, 16)
    pattern = layer.visible(n, across=False, padding=None)
    spent = flops(partial(layer.attend, q, q, q, x=q, pattern=pattern))
    _, state = layer.prefill(torch.zeros(1, n, 64))
    kept = state.nbytes / (2 * 4 * 16 * 4)  # keys and values, heads, width, bytes
    return {
        "operations": spent / (4 * 4 * n * n * 16),
        "kept": kept,
        "mean span and sinks": sum(alpha) / 4 + 64,
    }


def claim(context: Context) -> Outcome:
    checked = context.check("counted", counted)
    ways = {name: spans(alpha) for name, alpha in SPANS.items()} | {"dense": partial(create, "softmax")}
    found = context.measure({f"{name} retrieval": retrieval(mixer) for name, mixer in ways.items()})
    written = context.measure({f"{name} text": text(mixer) for name, mixer in ways.items()})
    accuracy = {name: found[f"{name} retrieval"]["accuracy"].mean for name in ways}
    loss = {name: written[f"{name} text"]["loss"].mean for name in ways}
    return Outcome(
        setting="models trained with their spans, 2 layers, width 64, 4 heads; mean spans of 16 besides "
        "2 sinks; symbols 40 tokens back, rotary, 300 steps of 16; bytes of the standard library, windows of "
        "128, 200 steps of 16; the paper plans spans for pretrained models of 7B and more",
        figures=[
            Figure.of("accuracy of retrieval", found, "accuracy", ours="mixed retrieval"),
            Figure.of(TEXT.metric_name, written, "loss", ours="mixed text"),
        ],
        criteria=[
            quality(
                "retrieves at least 1.5 times as well as uniform spans",
                accuracy["mixed"] / accuracy["uniform"], at_least=1.5,
            ),
            quality(
                "on text, mixed spans are no worse than uniform ones",
                loss["mixed"] - loss["uniform"], at_most=0.0,
            ),
            quality("on text, at most 5 % above dense", loss["mixed"] / loss["dense"], at_most=1.05),
            cost(
                "at most half of the operations at a mean span of 1/16", checked["operations"], at_most=0.5
            ),
            exact(
                "decoding keeps the mean span, the sinks and no more",
                checked["kept"] - checked["mean span and sinks"], at_most=0.0,
            ),
        ],
        notes=["spans that grow with the length and their search are for the pretrained hosts"],
    )  # fmt: skip
