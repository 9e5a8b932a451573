"""Secret codes: a sentence that cannot be known otherwise, hidden in ordinary text, and asked for.

    The secret code of Maria is amber falcon 4271.

Filler is docstrings of the standard library, so that a model has read its like and none of it helps. A case
says which tokens hold the answer: the text is tokenised as a whole, since a sentence has other tokens in the
midst of a text than alone, and the span is read off the characters' places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.docstrings import read_docstrings

NAMES = (
    *("Maria", "Victor", "Helen", "Oscar", "Nadia", "Walter", "Irene", "Felix", "Laura", "Simon", "Clara"),
    *("Bruno", "Alice", "Hugo", "Diana", "Martin", "Julia", "Peter", "Emma", "Robert", "Sarah", "Thomas"),
)
COLOURS = (
    *("amber", "silver", "crimson", "golden", "purple", "green", "orange", "white", "black", "yellow"),
    *("blue", "brown", "copper", "violet", "pink", "grey"),
)
THINGS = (
    *("falcon", "river", "lantern", "mountain", "garden", "window", "dragon", "castle", "bridge", "forest"),
    *("anchor", "pencil", "rocket", "violin", "harbor", "candle", "basket", "ladder", "hammer", "mirror"),
)

CODE = set("`<>{}|=_*")
"""What prose does not have."""


@dataclass(frozen=True)
class SecretCode:
    """Who has a secret code, and which."""

    name: str
    code: str

    @property
    def before(self) -> str:
        return f"The secret code of {self.name} is"

    @property
    def sentence(self) -> str:
        return f"{self.before} {self.code}."

    @property
    def question(self) -> str:
        return (
            "\n\nBased on the content of the text above, answer the question.\n"
            f"Question: What is the secret code of {self.name}?\nAnswer: {self.before}"
        )


@dataclass(frozen=True)
class NeedleCase:
    """A prompt, the places of the answer's tokens in it, and what hid it."""

    ids: Int[Tensor, "n"]
    start: int
    stop: int
    depth: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        require(
            0 <= self.start < self.stop <= len(self.ids),
            f"the answer is from {self.start} to {self.stop}, but the prompt has {len(self.ids)} tokens",
        )

    @property
    def answer(self) -> Int[Tensor, "s"]:
        return self.ids[self.start : self.stop]


def draw_codes(count: int, *, generator: torch.Generator) -> list[SecretCode]:
    """Of different people, different codes: two words and four digits."""
    most = min(len(NAMES), len(COLOURS), len(THINGS))
    require(1 <= count <= most, f"count is {count}, but there are words for 1 to {most} codes")
    names, colours, things = (
        [words[place] for place in torch.randperm(len(words), generator=generator)[:count].tolist()]
        for words in (NAMES, COLOURS, THINGS)
    )
    numbers = torch.randint(1000, 10_000, (count,), generator=generator).tolist()
    return [SecretCode(n, f"{c} {t} {number}") for n, c, t, number in zip(names, colours, things, numbers)]


def filler_sentences() -> list[str]:
    """Docstrings that read like prose: sentences of plain words."""
    texts = (each.text for each in read_docstrings())
    return [
        text for text in texts
        if 40 <= len(text) <= 300 and text.endswith(".") and text.isascii() and not set(text) & CODE
    ]  # fmt: skip


def needle_cases(
    tokenizer: Any, codes: Sequence[SecretCode], *, lengths: Sequence[int], depths: Sequence[float],
    generator: torch.Generator, filler: Sequence[str] | None = None,
) -> Iterator[NeedleCase]:  # fmt: skip
    """Every code at every length (about so many tokens of context) and depth (0 first, 1 last)."""
    require(all(0 <= depth <= 1 for depth in depths), f"depths is {list(depths)}, but each is from 0 to 1")
    require(all(length >= 32 for length in lengths), f"lengths is {list(lengths)}, but each is at least 32")
    filler = filler_sentences() if filler is None else list(filler)
    sizes = [
        len(ids) for ids in tokenizer([" " + each for each in filler], add_special_tokens=False).input_ids
    ]
    for code in codes:
        for length in lengths:
            for depth in depths:
                text = _haystack(filler, sizes, length, generator)
                at = round(depth * len(text))
                lead = " ".join([*text[:at], code.before])
                whole = " ".join([*text[:at], code.sentence, *text[at:]]) + code.question
                start = len(lead)
                yield _located(tokenizer, whole, start, start + len(code.code) + 1, depth, code.name)


def _haystack(
    filler: Sequence[str], sizes: Sequence[int], length: int, generator: torch.Generator
) -> list[str]:
    chosen, tokens = [], 0
    for place in torch.randperm(len(filler), generator=generator).tolist():
        if tokens >= length:
            break
        chosen.append(filler[place])
        tokens += sizes[place]
    require(tokens >= length, f"lengths has {length}, but the filler has {tokens} tokens in all")
    return chosen


def _located(tokenizer: Any, text: str, start: int, stop: int, depth: float, name: str) -> NeedleCase:
    """Tokens, and those that cover the characters from `start` to `stop`."""
    require(
        bool(getattr(tokenizer, "is_fast", False)),
        f"{type(tokenizer).__name__} gives no places of characters: a fast tokenizer is needed",
    )
    encoded = tokenizer(text, return_offsets_mapping=True)
    covering = [
        place for place, (first, last) in enumerate(encoded.offset_mapping) if first < stop and last > start
    ]
    return NeedleCase(torch.tensor(encoded.input_ids), covering[0], covering[-1] + 1, depth, name)
