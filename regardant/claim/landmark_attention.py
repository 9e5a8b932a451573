"""Do landmarks find the block that matters, also in texts four times as long as those of training?

Needles, keys with their values, lie scattered in filler; behind it the keys are asked for. A model of
landmark attention is trained at one length and read with the same weights in several ways: with every block,
with the two that each head retrieves, and with two at random; at that length and at four times as much.
Softmax attention, trained in the same way, stands beside it at the length of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.core.landmarks import insert_landmarks
from regardant.core.selected import best
from regardant.task.held_out import validation_generator
from regardant.task.score import IGNORED, hits, label_loss
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

BLOCK, RETRIEVED, DIM, HEADS = 8, 2, 64, 4
NAMES, FILLERS = 16, 16
"""How many keys, and as many values; and how many words of filler."""
VOCABULARY = 2 * NAMES + FILLERS + 1


@dataclass(frozen=True)
class Needles:
    """`pairs` keys and values, side by side, at random even places; then all the keys, in another order.

    The answer is asked for at the key; behind it stands its value. Landmarks are part of the text.
    """

    length: int
    pairs: int = 4
    held_out: int = 128

    name: ClassVar[str] = "needles"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    loss = staticmethod(label_loss)
    metric = staticmethod(hits)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def shuffled(count: int) -> Tensor:
            return torch.rand(size, count, generator=generator).argsort(dim=-1)[:, : self.pairs]

        hay = self.length - 2 * self.pairs
        keys, values, order = shuffled(NAMES), NAMES + shuffled(NAMES), shuffled(self.pairs)
        tokens = torch.randint(2 * NAMES, VOCABULARY - 1, (size, self.length), generator=generator)
        at = 2 * shuffled(hay // 2)
        tokens.scatter_(1, at, keys).scatter_(1, at + 1, values)
        tokens[:, hay::2], tokens[:, hay + 1 :: 2] = keys.gather(1, order), values.gather(1, order)
        labels = torch.full_like(tokens, IGNORED)
        labels[:, hay::2] = values.gather(1, order)
        put = partial(insert_landmarks, block=BLOCK)
        return put(tokens, landmark=VOCABULARY - 1), put(labels, landmark=IGNORED)

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor]:
        return self.batch(self.held_out, validation_generator())

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*(part.split(32) for part in self._held_out))


SHORT, LONG = Needles(64), Needles(256)


def model(*systems: str) -> nn.Module:
    """A convolution and a layer of each system."""
    own = {
        "landmark-attention": {"block": BLOCK},
        "landmark-retrieval": {"block": BLOCK, "retrieved": RETRIEVED},
        "softmax": {},
    }
    mixers = [partial(create, name, dim=DIM, heads=HEADS, causal=True, **own[name]) for name in systems]
    shift = partial(create, "base-conv", dim=DIM)
    return TokenModel(VOCABULARY, [shift, *mixers], dim=DIM, expansion=2)


def trained(system: str):
    def unit(run):
        found = run.fit(partial(model, system, system), SHORT, steps=900, batch=16, learning_rate=5e-3)
        figures = {"all blocks": evaluate(found, SHORT)}
        if system == "landmark-attention":
            figures |= retrieving(found)
        return figures

    return unit


def retrieving(learned: nn.Module) -> dict[str, float]:
    """The accuracies of the same weights when blocks are retrieved, by their landmarks and at random."""
    reader, last = model(*["landmark-retrieval"] * 2), model("landmark-attention", "landmark-retrieval")
    for each in (reader, last):
        each.load_state_dict(learned.state_dict())
    figures = {"retrieved": evaluate(reader, SHORT), "retrieved, long": evaluate(reader, LONG)}
    figures |= {"retrieved in the last layer": evaluate(last, SHORT)}
    generator = torch.Generator().manual_seed(0)

    def at_random(q, landmarks, own, usable):
        shape = (*q.shape[:3], landmarks.shape[2])
        earlier = torch.arange(shape[-1]) < own[..., None]
        return best(torch.rand(shape, generator=generator).masked_fill(~earlier, -torch.inf), RETRIEVED)

    for block in reader.trunk.blocks[1:]:
        block.mixer.choose = at_random
    return figures | {"at random": evaluate(reader, SHORT), "at random, long": evaluate(reader, LONG)}


@torch.no_grad()
def equalities() -> dict[str, float]:
    """How far row sums are from 1, and all blocks retrieved from what was trained."""
    with seeded(0):
        layer = create("landmark-attention", dim=32, heads=4, block=BLOCK).double()
        x = torch.randn(2, 150, 32, dtype=torch.float64)
    reader = create("landmark-retrieval", dim=32, heads=4, block=BLOCK, retrieved=100).double()
    reader.load_state_dict(layer.state_dict())
    sums = layer.mixing_matrix(x).sum(-1)
    return {"rows": (sums - 1).abs().max().item(), "all": (reader(x) - layer(x)).abs().max().item()}


def reduction() -> dict[str, float]:
    """How many times fewer keys the last query of a long text reads, landmarks that it scores included."""
    length = LONG.length + LONG.length // BLOCK
    read = BLOCK + RETRIEVED * BLOCK + length // (BLOCK + 1)
    return {"times": length / read}


def claim(context: Context) -> Outcome:
    exactly = context.check("equalities", equalities)
    fewer = context.check("keys read", reduction)
    found = context.measure(
        {"landmark attention": trained("landmark-attention"), "softmax": trained("softmax")}
    )
    ours = {name: spread.mean for name, spread in found["landmark attention"].items()}
    full = ours["all blocks"]
    return Outcome(
        setting=f"{SHORT.pairs} keys and values in {SHORT.length} tokens of filler, read at {LONG.length}, "
        f"too; a gated convolution and two layers of width {DIM}, {HEADS} heads, blocks of {BLOCK}, "
        f"{RETRIEVED} retrieved, no positions; 900 steps of 16; the paper trains on books and extends "
        "LLaMA-7B to 32k tokens",
        figures=[
            Figure.of("accuracy with all blocks", found, "all blocks", ours="landmark attention"),
            *(
                Figure(f"accuracy, blocks {name}", {"landmark attention": spread})
                for name, spread in found["landmark attention"].items()
                if name != "all blocks"
            ),
        ],
        criteria=[
            quality(
                "retrieved: share of the accuracy with all blocks", ours["retrieved"] / full, at_least=0.95
            ),
            quality(
                "four times as long: share of that accuracy", ours["retrieved, long"] / full, at_least=0.8
            ),
            quality("at random, four times as long: share", ours["at random, long"] / full, at_most=0.5),
            cost(
                "the last query of a long text reads so many times fewer keys", fewer["times"], at_least=4.0
            ),
            exact("row sums are 1", exactly["rows"], at_most=1e-9),
            exact("all blocks retrieved: as trained", exactly["all"], at_most=1e-9),
        ],
    )
