"""Does training on a sample of the keys generalise as well as training on all, at a share of the cost?

Digits as 64 tokens, of which only 300 images may be learned: dense training, attention to a quarter of
the keys with a dense end, and averages over draws. And bytes, where near keys should be drawn more often.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.record import Record
from regardant.sequence.information_pathways_ssa import ensemble, set_ratio
from regardant.task.bytes import Bytes
from regardant.task.digits import LEVELS, read_digits
from regardant.task.score import hits, label_loss
from regardant.train.fit import evaluate
from regardant.train.model import Classifier, TokenModel

IMAGES, RATIO, DRAWS = 300, 4, 8
TEXT, TEXT_RATIO = Bytes(length=128), 8


@dataclass(frozen=True)
class FewDigits:
    """Which digit is it: 64 pixels one by one, each with its row and column, [b, 64, 3]; only the first 300
    images are for training."""

    name: ClassVar[str] = "digits as 64 tokens, 300 images"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        train = read_digits()[0]
        chosen = torch.randint(IMAGES, (size,), generator=generator)
        return self._show(train.images[chosen]), train.labels[chosen]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        held_out = read_digits()[1]
        yield self._show(held_out.images), held_out.labels

    @staticmethod
    def _show(images: Tensor) -> Tensor:
        side, brightness = torch.linspace(-1, 1, 8), images.flatten(1) / (LEVELS - 1)
        places = torch.cartesian_prod(side, side).expand(len(images), -1, -1)
        return torch.cat([brightness[..., None], places], dim=-1)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


TASK = FewDigits()


class Averaged(nn.Module):
    """A model whose outputs are averages over draws."""

    def __init__(self, model: nn.Module, samples: int, seed: int):
        super().__init__()
        self.model, self.samples, self.generator = model, samples, torch.Generator().manual_seed(seed)

    def forward(self, inputs: Tensor, *, record: Record | None = None) -> Tensor:
        return ensemble(self.model, inputs, samples=self.samples, generator=self.generator)


def digits(ratio: int):
    """Nine tenths of the steps with a share of the keys, one tenth with all of them."""

    def unit(run):
        own = {"dim": 64, "heads": 4, "ratio": ratio, "locality": None}
        mixers = [partial(create, "information-pathways-ssa", **own)] * 2
        make = partial(Classifier, 3, 10, mixers, dim=64, size=(64,), expansion=2)
        model = run.fit(make, TASK, steps=360, batch=16, learning_rate=3e-3)
        found = {}
        if ratio > 1:
            found["one draw"] = sum(evaluate(Averaged(model, 1, seed), TASK) for seed in range(4)) / 4
            found["averaged"] = evaluate(Averaged(model, DRAWS, 9), TASK)
            found["dense without its end"] = evaluate(model, TASK)
        set_ratio(model, 1)
        model = run.fit(lambda: model, TASK, steps=40, batch=16, learning_rate=6e-4)
        return found | {"accuracy": evaluate(model, TASK)}

    return unit


def text(locality: float | None):
    def unit(run):
        own = {"dim": 64, "heads": 4, "causal": True, "ratio": TEXT_RATIO, "locality": locality}
        mixers = [partial(create, "information-pathways-ssa", **own)] * 2
        make = partial(TokenModel, TEXT.vocabulary, mixers, dim=64, length=TEXT.length, expansion=2)
        model = run.fit(make, TEXT, steps=270, batch=16, learning_rate=2e-3)
        set_ratio(model, 1)
        model = run.fit(lambda: model, TEXT, steps=30, batch=16, learning_rate=5e-4)
        return {"loss": evaluate(model, TEXT)}

    return unit


@torch.no_grad()
def work() -> dict[str, float]:
    """Operations of attention alone, as a share of the dense ones."""
    spent = {}
    for ratio in (1, RATIO):
        layer = create("information-pathways-ssa", dim=64, heads=4, ratio=ratio).train()
        q = torch.zeros(2, 4, 1024, 16)
        spent[ratio] = flops(partial(layer.attend, q, q, q, x=q, pattern=None))
    return {"share": spent[RATIO] / spent[1]}


def claim(context: Context) -> Outcome:
    checked = context.check("work", work)
    found = context.measure({"dense": digits(1), "ssa": digits(RATIO)})
    bytes_found = context.measure({"local": text(1.0), "unbiased": text(None)})
    ssa, dense = found["ssa"], found["dense"]
    ahead = ssa["accuracy"].mean - dense["accuracy"].mean
    gain = ssa["averaged"].mean - ssa["one draw"].mean
    nearer = bytes_found["unbiased"]["loss"].mean - bytes_found["local"]["loss"].mean
    return Outcome(
        setting=f"digits as 64 tokens, {IMAGES} images, 2 layers, width 64, 360 + 40 dense steps of 16, a "
        f"quarter of the keys; bytes of the standard library, windows of 128, 2 layers, width 64, 270 + 30 "
        "steps of 16, an eighth of the keys; the paper trains on enwik8, CIFAR-10 and ImageNet",
        figures=[
            Figure.of("accuracy", found, "accuracy", ours="ssa"),
            Figure(
                f"accuracy of {DRAWS} draws averaged", {"ssa": ssa["averaged"]}, {"one draw": ssa["one draw"]}
            ),
            Figure.of(TEXT.metric_name, bytes_found, "loss", ours="local"),
        ],
        criteria=[
            quality("sampled training and a dense end: at least as accurate as dense", ahead, at_least=0.0),
            quality(f"{DRAWS} draws averaged are at least as accurate as one", gain, at_least=0.0),
            quality("on text, near keys drawn more often are no worse than any", nearer, at_least=0.0),
            exact("attention in training takes 1/4 of the operations", checked["share"], at_most=0.25),
        ],
        notes=[
            f"chance is a loss of {log(256):.2f} nats on bytes",
            "without its dense end, dense evaluation of the sampled model: accuracy "
            f"{ssa['dense without its end'].mean:.3f}",
        ],
    )
