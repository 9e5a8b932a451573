"""Short questions with a few possible answers, from templates: sentiment, topic, yes or no.

What a pretrained language model scores as the next word decides. The words are drawn from a generator, so
that selection and test never share a question.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

GOOD = [
    "wonderful",
    "delightful",
    "charming",
    "brilliant",
    "superb",
    "moving",
    "fresh",
    "clever",
    "warm",
    "gripping",
    "honest",
    "lovely",
]
BAD = [
    "dull",
    "awful",
    "boring",
    "clumsy",
    "tedious",
    "weak",
    "bland",
    "messy",
    "cold",
    "pointless",
    "noisy",
    "stale",
]
THINGS = [
    "film",
    "book",
    "play",
    "song",
    "meal",
    "hotel",
    "game",
    "show",
    "lecture",
    "concert",
    "trip",
    "painting",
]
TOPICS = {
    "sports": ["goal", "match", "player", "coach", "league", "stadium", "referee", "tournament"],
    "food": ["soup", "bread", "sauce", "recipe", "cheese", "oven", "dessert", "spice"],
    "music": ["melody", "guitar", "choir", "violin", "rhythm", "album", "concert", "drum"],
}
KINDS = {
    "animal": ["dog", "horse", "eagle", "salmon", "tiger", "rabbit", "whale", "sparrow"],
    "fruit": ["apple", "banana", "cherry", "pear", "mango", "grape", "peach", "lemon"],
    "tool": ["hammer", "saw", "drill", "wrench", "chisel", "pliers", "shovel", "rake"],
}


@dataclass(frozen=True)
class Question:
    """A prompt, the words that may follow it, and which is right."""

    kind: str
    prompt: str
    options: tuple[str, ...]
    answer: int


def questions(generator: torch.Generator, *, each: int, apart: int = 0) -> list[Question]:
    """`each` questions of every kind, none twice; `apart` further ones of each kind are skipped first."""
    pools = (_sentiments(), _topics(), _yes_or_no())
    drawn = []
    for pool in pools:
        order = torch.randperm(len(pool), generator=generator).tolist()
        drawn += [pool[at] for at in order[apart : apart + each]]
    return drawn


def _sentiments() -> list[Question]:
    options = (" positive", " negative")
    found = []
    for thing, (answer, words) in product(THINGS, enumerate((GOOD, BAD))):
        for first, second in zip(words, words[1:] + words[:1]):
            found.append(
                Question(
                    "sentiment",
                    f"Review: The {thing} was {first} and {second}.\nQuestion: Is this review positive or "
                    "negative?\nAnswer: The review is",
                    options,
                    answer,
                )
            )
    return found


def _topics() -> list[Question]:
    options = tuple(f" {topic}" for topic in TOPICS)
    found = []
    for answer, words in enumerate(TOPICS.values()):
        for first, second, third in product(words, repeat=3):
            if len({first, second, third}) == 3:
                found.append(
                    Question(
                        "topic",
                        f"Words: {first}, {second}, {third}.\nQuestion: Are these words about "
                        f"{' or'.join([','.join(options[:-1]), options[-1]]).strip()}?\n"
                        "Answer: They are about",
                        options,
                        answer,
                    )
                )
    return found


def _yes_or_no() -> list[Question]:
    found = []
    for kind, (other, words) in product(KINDS, KINDS.items()):
        for first, second in product(words, repeat=2):
            if first != second and (kind == other or _every_other(first, second)):
                article = "an" if kind[0] in "aeiou" else "a"
                found.append(
                    Question(
                        "yes or no",
                        f"Remember the {second}.\nQuestion: Is the {first} {article} {kind}, yes or no?\n"
                        "Answer:",
                        (" Yes", " No"),
                        0 if kind == other else 1,
                    )
                )
    return found


def _every_other(first: str, second: str) -> bool:
    """Half of the pairs, the same in every run: as many questions with the answer no as with yes."""
    return (len(first) + len(second) + ord(first[0]) + ord(second[-1])) % 2 == 0
