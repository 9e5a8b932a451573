"""Concepts from shallow to deep, as sentences that are true of them or not: what a probe may read where.

    surface      a digit stands in the sentence
    sentiment    praise or blame, by many adjectives
    fact         a city is in that country
    comparison   this number is larger than that
    parity       a coin that was flipped so often is heads up

All texts of a concept end in the same words, so that its last token tells nothing by itself. What decides a
text, the filler, is its `group`: training and test are to share none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from regardant.core.errors import require, unknown
from regardant.task.world_facts import COUNTRIES

GOOD = (
    *("wonderful", "excellent", "delightful", "charming", "brilliant", "superb", "lovely", "pleasant"),
    *("great", "amazing", "fantastic", "beautiful", "perfect", "impressive", "enjoyable", "splendid"),
    *("marvelous", "terrific", "outstanding", "touching", "funny", "clever", "elegant", "fresh"),
)
BAD = (
    *("terrible", "awful", "dreadful", "boring", "horrible", "poor", "ugly", "unpleasant"),
    *("bad", "disappointing", "pathetic", "dull", "miserable", "tedious", "annoying", "weak"),
    *("disgusting", "stupid", "clumsy", "lazy", "painful", "bland", "cheap", "stale"),
)
SUBJECTS = ("film", "meal", "book", "hotel", "song", "concert", "museum", "journey", "play", "garden")
WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
THINGS = ("apples", "houses", "letters", "horses", "chairs", "bottles", "stones", "boats", "lamps", "coins")
PEOPLE = ("Anna", "Tom", "Kate", "John", "Mary", "Paul", "Lucy", "Mark", "Rose", "Jack", "Jane", "Bill")
PLACES = ("kitchen", "harbor", "market", "forest", "station", "village", "office", "garden")


@dataclass(frozen=True)
class ConceptTexts:
    """Sentences, whether the concept is true of them, and what decides it."""

    texts: tuple[str, ...]
    labels: Bool[Tensor, "b"]
    groups: tuple[str, ...]

    def split(self, *, share: float, generator: torch.Generator) -> Bool[Tensor, "b"]:
        """True for training: about this share of the groups, none of which is on both sides."""
        require(0 < share < 1, f"share is {share}, but it is between 0 and 1")
        names = sorted(set(self.groups))
        order = torch.randperm(len(names), generator=generator).tolist()
        chosen = {names[place] for place in order[: max(1, round(share * len(names)))]}
        return torch.tensor([group in chosen for group in self.groups])

    def noisy(self, *, generator: torch.Generator, share: float = 0.5, letters: int = 12) -> ConceptTexts:
        """The same with a random string before some of the texts."""
        alphabet = "abcdefghijklmnopqrstuvwxyz"
        texts = []
        for text in self.texts:
            drawn = torch.randint(26, (letters,), generator=generator).tolist()
            noise = float(torch.rand((), generator=generator)) < share
            texts.append("".join(alphabet[each] for each in drawn) + " " + text if noise else text)
        return ConceptTexts(tuple(texts), self.labels, self.groups)


Drawn = tuple[str, str]
"""A sentence, and its group."""


def concept_texts(name: str, count: int, *, generator: torch.Generator) -> ConceptTexts:
    """`count` different texts of a concept, half of them true."""
    if name not in CONCEPTS:
        raise unknown("concept", name, sorted(CONCEPTS))
    require(
        count >= 2 and count % 2 == 0, f"count is {count}, but half of the texts are true: an even number"
    )
    draw, ending = CONCEPTS[name]

    def pick(items: Sequence) -> object:
        return items[int(torch.randint(len(items), (1,), generator=generator))]

    found: dict[str, tuple[bool, str]] = {}
    for label in (True, False):
        wanted = len(found) + count // 2
        for _ in range(200 * count):
            if len(found) == wanted:
                break
            text, group = draw(label, pick)
            found.setdefault(text + ending, (label, group))
        require(len(found) == wanted, f"count is {count}, but {name} has fewer different texts")
    order = torch.randperm(count, generator=generator).tolist()
    rows = [list(found.items())[place] for place in order]
    return ConceptTexts(
        tuple(text for text, _ in rows),
        torch.tensor([label for _, (label, _) in rows]),
        tuple(group for _, (_, group) in rows),
    )


def _surface(label: bool, pick: Callable) -> Drawn:
    number = pick(range(len(WORDS)))
    person, thing, place = pick(PEOPLE), pick(THINGS), pick(PLACES)
    said = str(number + 2) if label else WORDS[number]
    return f"{person} saw {said} {thing} near the {place}.", thing


def _sentiment(label: bool, pick: Callable) -> Drawn:
    adjective = pick(GOOD if label else BAD)
    return f"{pick(PEOPLE)} said that the {pick(SUBJECTS)} was {adjective}.", adjective


def _fact(label: bool, pick: Callable) -> Drawn:
    own = pick(COUNTRIES)
    city = pick(own.cities)
    if label:
        return f"The city of {city} is in {own.name}.", city
    other = pick([each for each in COUNTRIES if city not in each.cities])
    return f"The city of {city} is in {other.name}.", city


def _comparison(label: bool, pick: Callable) -> Drawn:
    low, high = sorted((pick(range(10, 99)), pick(range(10, 99))))
    high += high == low
    first, second = (high, low) if label else (low, high)
    return f"The number {first} is larger than {second}.", f"{low} {high}"


def _parity(label: bool, pick: Callable) -> Drawn:
    flips = pick((2, 3, 4))
    people = [pick(PEOPLE) for _ in range(flips)]
    turned = [pick((True, False)) for _ in people]
    if (sum(turned) % 2 == 0) != label:
        turned[-1] = not turned[-1]
    said = " ".join(f"{p} {'flips' if t else 'does not flip'} the coin." for p, t in zip(people, turned))
    return f"A coin is heads up. {said}", " ".join(people)


CONCEPTS: dict[str, tuple[Callable[[bool, Callable], Drawn], str]] = {
    "surface": (_surface, "\nQuestion: Does this contain a digit?\nAnswer:"),
    "sentiment": (_sentiment, "\nQuestion: Is this praise?\nAnswer:"),
    "fact": (_fact, "\nQuestion: Is this true?\nAnswer:"),
    "comparison": (_comparison, "\nQuestion: Is this true?\nAnswer:"),
    "parity": (_parity, "\nQuestion: Is the coin still heads up?\nAnswer:"),
}
