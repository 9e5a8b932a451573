"""Prompts for comparing circuits, in pairs that stand token by token side by side.

    indirect object   When Mary and John went to the store, John gave a drink to            → Mary
                      the partner: … Mary gave a drink to                                    → John
    coloured objects  (one solved example) I see a red pen, a blue cup, and a green book.
                      What color is the cup? A:                                              → blue
                      the partner asks for another object of the same list

Names, colours and objects are single tokens with their space, which is looked up and not believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regardant.core.errors import require

NAMES = (
    *("Mary", "John", "Tom", "James", "Sarah", "Peter", "David", "Anna", "Paul", "Mark", "Kate", "Jack"),
    *("Robert", "Laura", "Emma", "Simon", "Alice", "George", "Helen", "Martin"),
)
PLACES, GIFTS = ("store", "park", "school", "office", "market"), ("drink", "book", "ring", "ball", "letter")
COLOURS = ("red", "blue", "green", "yellow", "purple", "brown", "black", "white", "pink", "gray")
OBJECTS = ("pen", "cup", "book", "ball", "plate", "ring", "bag", "box", "hat", "key", "bottle", "card")


@dataclass(frozen=True)
class CircuitPrompts:
    """Pairs of prompts with their answers: `right` is the clean prompt's, `wrong` its partner's."""

    clean: Int[Tensor, "b n"]
    corrupt: Int[Tensor, "b n"]
    right: Int[Tensor, "b"]
    wrong: Int[Tensor, "b"]
    options: Int[Tensor, "b o"]
    """All tokens that might be said, the right one first."""
    wrong_places: Bool[Tensor, "b n"]
    """Where the other options stand."""


def indirect_objects(tokenizer: Any, count: int, *, generator: torch.Generator) -> CircuitPrompts:
    """Who was given it: the name that stands once."""
    names = single_tokens(tokenizer, NAMES)
    rows = []
    for _ in range(count):
        a, b = (names[place] for place in torch.randperm(len(names), generator=generator)[:2].tolist())
        place, gift = _pick(PLACES, generator), _pick(GIFTS, generator)
        text = "When {} and {} went to the " + place + ", {} gave a " + gift + " to"
        order = (a, b) if _pick((True, False), generator) else (b, a)
        rows.append((text.format(*order, b), text.format(*order, a), (a, b)))
    return _prompts(tokenizer, rows)


def coloured_objects(
    tokenizer: Any, count: int, *, generator: torch.Generator, objects: int = 3
) -> CircuitPrompts:
    """Which colour the object has that is asked for."""
    colours, things = single_tokens(tokenizer, COLOURS), single_tokens(tokenizer, OBJECTS)
    require(
        2 <= objects <= min(len(colours), len(things)) - 1,
        f"objects is {objects}, but a list has 2 to {min(len(colours), len(things)) - 1}",
    )
    rows = []
    for _ in range(count):
        lists = []
        for _ in range(2):
            own = [colours[place] for place in torch.randperm(len(colours), generator=generator).tolist()]
            what = [things[place] for place in torch.randperm(len(things), generator=generator).tolist()]
            lists.append((own[:objects], what[:objects]))
        (shown, what), (own, asked) = lists
        solved = _question(shown, what, int(torch.randint(objects, (1,), generator=generator)), True)
        first, second = torch.randperm(objects, generator=generator)[:2].tolist()
        options = (own[first], own[second], *(c for c in own if c not in (own[first], own[second])))
        texts = (solved + _question(own, asked, at, False) for at in (first, second))
        rows.append((*texts, options))
    return _prompts(tokenizer, rows)


def single_tokens(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """Those words that are one token behind a space."""
    found = [word for word in words if len(tokenizer(" " + word, add_special_tokens=False).input_ids) == 1]
    require(len(found) >= 4, f"only {len(found)} of {', '.join(words)} are single tokens: 4 are needed")
    return found


def _question(colours: Sequence[str], things: Sequence[str], asked: int, solved: bool) -> str:
    seen = [f"a {colour} {thing}" for colour, thing in zip(colours, things)]
    listed = ", ".join(seen[:-1]) + f", and {seen[-1]}"
    answer = f" {colours[asked]}\n\n" if solved else ""
    return f"Q: On the table, I see {listed}. What color is the {things[asked]}?\nA:{answer}"


def _prompts(tokenizer: Any, rows: Sequence[tuple[str, str, Sequence[str]]]) -> CircuitPrompts:
    """Tokens of pairs; those of the commonest length, so that they lie side by side."""
    encoded = [
        (
            tokenizer(clean).input_ids,
            tokenizer(corrupt).input_ids,
            [tokenizer(" " + each, add_special_tokens=False).input_ids[0] for each in options],
        )
        for clean, corrupt, options in rows
    ]
    lengths = [len(clean) for clean, corrupt, _ in encoded if len(clean) == len(corrupt)]
    require(bool(lengths), "no pair of prompts has as many tokens on both sides")
    length = max(set(lengths), key=lengths.count)
    clean, corrupt, options = (
        torch.tensor(each) for each in zip(*(row for row in encoded if len(row[0]) == len(row[1]) == length))
    )
    others = (clean[:, :, None] == options[:, None, 1:]).any(-1)
    # In a solved example the same colours may stand: what counts is the last list.
    last = torch.zeros_like(others)
    for row in range(len(clean)):
        for option in options[row, 1:].tolist():
            last[row, (clean[row] == option).nonzero().max()] = True
    return CircuitPrompts(clean, corrupt, options[:, 0], options[:, 1], options, others & last)


def _pick(items: Sequence, generator: torch.Generator) -> Any:
    return items[int(torch.randint(len(items), (1,), generator=generator))]
