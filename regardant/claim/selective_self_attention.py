"""Can one head be sharp for some queries and broad for others, and stay sharp among more keys?

A head looks keys up: a sharp query wants the value of the key nearest to it, a broad one, told by a flag,
the mean of all values. Trained on 8 to 64 keys, tested on 64 and on 256. Then bytes of the standard
library, at equal size but for the temperatures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import parameters
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.sequence.selective_self_attention import FIRST_BETA
from regardant.task.bytes import Bytes
from regardant.task.held_out import validation_generator
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

CONTENT, VALUE, FEWEST, MOST, FAR = 14, 8, 8, 64, 256
DIM = CONTENT + VALUE + 2
TEXT = Bytes(length=64)
SSA = "selective-self-attention"


@dataclass(frozen=True)
class SharpAndBroad:
    """The value of the key nearest to the query, or the mean of all values; half of the queries each."""

    keys: int | None = None
    """How many keys; None: as many as each batch draws."""

    name: ClassVar[str] = "sharp and broad queries"
    metric_name: ClassVar[str] = "mean squared error"
    higher_is_better: ClassVar[bool] = False

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n = self.keys or int(torch.randint(FEWEST, MOST + 1, (), generator=generator))
        keys = F.normalize(torch.randn(size, n, CONTENT, generator=generator), dim=-1)
        values = torch.randn(size, n, VALUE, generator=generator)
        asked = torch.randint(n, (size,), generator=generator)
        each = torch.arange(size)
        sharp = torch.rand(size, generator=generator) < 0.5
        query = keys[each, asked] + 0.05 * torch.randn(size, CONTENT, generator=generator)
        flags = F.one_hot(sharp.long(), 2).float()
        asks = torch.cat([query, torch.zeros(size, VALUE), flags], dim=-1)[:, None]
        rows = torch.cat([torch.cat([keys, values, torch.zeros(size, n, 2)], dim=-1), asks], dim=1)
        return rows, torch.where(sharp[:, None], values[each, asked], values.mean(dim=1))

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = validation_generator()
        for _ in range(8):
            yield self.batch(64, generator)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (outputs - targets).square().sum(), torch.tensor(float(targets.numel()))


class LookUp(nn.Module):
    """The last row asks, the others are the context."""

    def __init__(self, system: str, **own):
        super().__init__()
        self.attention = create(system, dim=DIM, heads=1, context_dim=DIM, **own)
        self.head = nn.Linear(DIM, VALUE)

    def forward(self, rows: Tensor, *, record=None) -> Tensor:
        return self.head(self.attention(rows[:, -1:], rows[:, :-1], record=record)[:, 0])


def looked_up(system: str, **own):
    def unit(run):
        model = run.fit(
            partial(LookUp, system, **own), SharpAndBroad(), steps=1500, batch=64, learning_rate=5e-3
        )
        near, far = (evaluate(model, SharpAndBroad(keys)) for keys in (MOST, FAR))
        norms = [layer.weight.norm().item() for layer in (model.attention.to_q, model.attention.to_k)]
        return {"error": near, "rise": far - near, "norm": sum(norms)}

    return unit


def read(system: str):
    def unit(run):
        mixers = [partial(create, system, dim=96, heads=4, causal=True)] * 2
        make = partial(TokenModel, TEXT.vocabulary, mixers, dim=96, length=TEXT.length)
        return {"loss": evaluate(run.fit(make, TEXT, steps=400, batch=16, learning_rate=2e-3), TEXT)}

    return unit


@torch.no_grad()
def at_the_start() -> dict[str, float]:
    """How far a layer grown out of a dense one is from it: all of it is the growth with ln n."""
    with seeded(0):
        dense = create("softmax", dim=64, heads=8, causal=True).double()
        x = torch.randn(2, 128, 64, dtype=torch.float64)
    ours = type(create(SSA, dim=64, heads=8)).from_dense(dense)
    apart = (ours(x) - dense(x)).abs().max().item()
    ours.rule.beta.fill_(FIRST_BETA + 8)
    layers = [create(name, dim=512, heads=8) for name in (SSA, "softmax")]
    return {
        "apart": apart,
        "without growth": (ours(x) - dense(x)).abs().max().item(),
        "added": parameters(layers[0]) / parameters(layers[1]) - 1,
    }


def claim(context: Context) -> Outcome:
    checked = context.check("at the start", at_the_start)
    found = context.measure(
        {
            "selective": looked_up(SSA),
            "token alone": looked_up(SSA, temperature="token"),
            "softmax": looked_up("softmax"),
        }
    )
    text = context.measure({"selective on text": read(SSA), "softmax on text": read("softmax")})
    ours, softmax = found["selective"], found["softmax"]
    behind = text["selective on text"]["loss"], text["softmax on text"]["loss"]
    noise = 2 * (behind[0].error ** 2 + behind[1].error ** 2) ** 0.5
    own = ("selective", "token alone")
    return Outcome(
        setting=f"one head of width {DIM}, 1500 steps of 64 look-ups among {FEWEST} to {MOST} keys, tested "
        f"on {MOST} and {FAR}; bytes: 2 layers of width 96, 400 steps of 16 windows of {TEXT.length}; the "
        "paper trains and fine-tunes language models of 160M to 8B parameters",
        figures=[
            Figure.of(f"mean squared error on {MOST} keys", found, "error", ours=own),
            Figure.of(f"rise of the error on {FAR} keys", found, "rise", ours=own),
            Figure.of("norms of the query's and the key's weights", found, "norm", ours=own),
            Figure.of(TEXT.metric_name, text, "loss", ours="selective on text"),
        ],
        criteria=[
            quality(
                "error lower than softmax's by two standard errors",
                ours["error"].mean - softmax["error"].mean,
                at_most=-2 * (ours["error"].error ** 2 + softmax["error"].error ** 2) ** 0.5,
            ),
            quality(
                "smaller norms of queries and keys than softmax",
                ours["norm"].mean - softmax["norm"].mean,
                at_most=0.0,
            ),
            quality(
                "with the part of n the error rises less on 4 times the keys",
                ours["rise"].mean - found["token alone"]["rise"].mean,
                at_most=0.0,
            ),
            quality(
                "on text no worse than two standard errors", behind[0].mean - behind[1].mean, at_most=noise
            ),
            cost("under 0.5 % more parameters in a layer of width 512", checked["added"], at_most=0.005),
            exact("at the start within 0.01 of softmax", checked["apart"], at_most=0.01),
            exact("and equal without the growth by ln n", checked["without growth"], at_most=1e-9),
        ],
    )
