"""FuseMax: attention as cascades of Einsums, and the passes that they need (Nayak et al., "FuseMax:
Leveraging Extended Einsums to Optimize Attention Accelerator Design", 2024, arXiv:2406.10491).

The same softmax can be written as several cascades. From the cascade alone follows how many times any
mapping must traverse the fibers of a rank, here the keys m of one query p:

    passes(m) = 1 + the longest chain of whole reductions over m that must end before m is used again

3 for the softmax of frameworks (maximum; sum; division), 2 where the division is deferred or each tile
has its own maximum, 1 for the online softmax:

    RM' = max(RM, max_tile QK)      RD' = RD e^(RM−RM') + Σ_tile e^(QK−RM')      RNV' = RNV e^(RM−RM') + …

With more than one pass, a row of the length of the keys is kept on chip or read (or made) again. Passes
belong to the algebra: fusing loops does not lower them. One pass costs an exponential and a rescaling for
every tile more, and keeps nothing that grows with the length.

    PassAnalysis()(attention_cascade("1-pass"))       a cascade, of ours or read from text
    PassAnalysis()(rule.reference)                    any call (q, k, v), by what it does

What differs from the official artefact: it holds the cascades as notes and as one mapping each, and
has no pass analysis; its cycle counts come from Timeloop, ours from a small model (`accelerator.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.core.rule import SoftmaxRule
from regardant.lens.attention_cascades import attention_cascade
from regardant.lens.cascade import Cascade
from regardant.lens.traced import trace

Call = Callable[[Tensor, Tensor, Tensor], Any]

SOFTMAX = {"naive": 2, "3-pass": 3, "3-pass deferred": 2, "2-pass": 2, "1-pass": 1, "split": 1}
"""The cascades that are softmax attention, and how many passes each takes."""
OTHERS = {"clipped": 2, "sigmoid": 1, "softplus re-weighted": 2, "linear": 1}


@dataclass(frozen=True)
class Passes:
    """What going over the keys takes."""

    passes: int
    kept: Mapping[int, int]
    """A number of keys → the elements that are kept meanwhile, for one query and head."""

    @property
    def grows(self) -> bool:
        """Whether what is kept grows with the number of keys."""
        few, many = min(self.kept), max(self.kept)
        return self.kept[many] > self.kept[few]


class PassAnalysis:
    """How often an attention must go over its keys, and what it keeps meanwhile."""

    def __init__(self, *, head_dim: int = 64, tile: int = 128, keys: tuple[int, int] = (1024, 1_048_576)):
        require(tile >= 1 and head_dim >= 1, f"tile={tile} and head_dim={head_dim} are at least 1")
        require(
            keys[0] < keys[1] and all(count % tile == 0 for count in keys),
            f"keys is {keys}, but it is a smaller and a larger number of whole tiles of {tile}",
        )
        self.head_dim, self.tile, self.keys = head_dim, tile, keys

    def __call__(self, attention: Cascade | Call) -> Passes:
        """Of a cascade, from its lines; of a call (q, k, v), from the operations that it does."""
        if isinstance(attention, Cascade):
            kept = {count: sum(attention.footprint(self.sizes(count), "m").values()) for count in self.keys}
            return Passes(attention.passes("m"), kept)
        require(callable(attention), f"attention is a {type(attention).__name__}, not a cascade or a call")
        found = {count: trace(attention, *_random(count)) for count in (101, 211)}
        passes = {each.passes for each in found.values()}
        require(len(passes) == 1, f"the passes follow from the arithmetic, but with the length come {passes}")
        return Passes(passes.pop(), {count: each.kept // 7 for count, each in found.items()})

    def sizes(self, keys: int) -> dict[str, int]:
        """One query against this many keys."""
        width = self.head_dim
        return {"e": width, "f": width, "p": 1, "m": keys, "m1": keys // self.tile, "m0": self.tile}

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        lens = cls()
        for name, passes in (SOFTMAX | OTHERS).items():
            cascade = attention_cascade(name)
            yield KnownAnswer(f"passes of {name}", lens(cascade).passes, passes)
        for name in SOFTMAX:
            for loud in (1.0, 80.0):
                if name == "naive" and loud > 1:
                    continue
                given, known = _drawn(name, generator, loud)
                found = attention_cascade(name).run(given)["AV"]
                yield KnownAnswer(f"{name} with logits of about {loud:g} is softmax attention", found, known)
        sizes = lens.sizes(1024)
        once, thrice = (attention_cascade(name).operations(sizes) for name in ("1-pass", "3-pass"))
        yield KnownAnswer("exponentials of three passes", thrice["exp"], 1024)
        yield KnownAnswer("exponentials of one pass: one more a tile", once["exp"], 1024 + 8)
        yield KnownAnswer("divisions of one pass: one a feature", once["divide"], 64)
        yield KnownAnswer(
            "three passes keep two rows more with each key",
            _slope(lens(attention_cascade("3-pass"))),
            2.0,
        )
        yield KnownAnswer(
            "one pass keeps no more with more keys", _slope(lens(attention_cascade("1-pass"))), 0.0
        )
        rule = SoftmaxRule()
        yield KnownAnswer("passes of torch's softmax, written out", lens(rule.reference).passes, 3)
        yield KnownAnswer("passes with the division deferred", lens(_deferred).passes, 2)
        yield KnownAnswer(
            "passes of the fused kernel", lens(torch.nn.functional.scaled_dot_product_attention).passes, 1
        )


def _slope(found: Passes) -> float:
    """Elements more for each key more."""
    few, many = min(found.kept), max(found.kept)
    return (found.kept[many] - found.kept[few]) / (many - few)


def _random(keys: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(keys)
    shapes = ((1, 1, 7, 4), (1, 1, keys, 4), (1, 1, keys, 4))
    return tuple(torch.randn(shape, generator=draw) for shape in shapes)


def _deferred(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.transpose(-1, -2)
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    return weights @ v / weights.sum(dim=-1, keepdim=True)


def _drawn(name: str, generator: torch.Generator, loud: float) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of a cascade, 24 keys in six tiles, and the softmax attention of them."""
    q, k, v = (
        torch.randn(width, count, generator=generator, dtype=torch.float64)
        for width, count in ((4, 5), (4, 24), (3, 24))
    )
    q = q * loud / (q.T @ k).abs().max()
    known = v @ (q.T @ k).softmax(dim=-1).T
    if attention_cascade(name).tiles:
        k, v = k.unflatten(1, (6, 4)), v.unflatten(1, (6, 4))
    return {"Q": q, "K": k, "V": v}, known
