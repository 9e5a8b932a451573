"""Generic COG (Ito et al., "On the generalization capacity of neural networks during generic multimodal
reasoning", 2024, arXiv:2401.15030): programs asked of a scene of coloured letters on a grid.

A program is one operator on an object that a colour and a letter (or one of them) select, or a chain of
conditions: if A then B, else if C then D, else E. Every condition adds 2 to the depth, which is 1 for one
operator. Answers are true, false, a cell, a letter or a colour, in that order.

Scenes are built backwards from the answers: truth is even, of parities too (a product would be even three
times in four), every selector but that of an object said to be absent finds exactly one object, whether its
branch is taken or not, and no distractor matches any. What differs from the official generator: chains grow
by their else-branch, where theirs grows trees; ids are meant for look-up tables, where theirs are fed as
numbers; programs and scenes come in one tensor.

    rows    [operator, colour, letter, end]   0: nothing, 1: any, from 2 on what it is
    inputs  the program's rows, an end row, empty rows up to `rules`; a row a cell, an end row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regardant.core.errors import require, unknown
from regardant.task.held_out import Drawn
from regardant.task.score import certain, hits, label_loss

EXIST, GO, COLOUR, LETTER = 2, 3, 4, 5
SUM_EVEN, SUM_ODD, PRODUCT_EVEN, PRODUCT_ODD, SWITCH = 6, 7, 8, 9, 10
OPERATORS = {
    "exist": EXIST, "go": GO, "getcolor": COLOUR, "getshape": LETTER, "sumeven": SUM_EVEN,
    "sumodd": SUM_ODD, "producteven": PRODUCT_EVEN, "productodd": PRODUCT_ODD,
}  # fmt: skip
NAMES = {number: name for name, number in OPERATORS.items()}
COMBINATIONS = ("all", "seen", "held out")
FIRST = 2
"""The id of the first colour and of the first letter."""


@dataclass(frozen=True)
class GCOG(Drawn):
    """Answer programs about scenes; the metric is the accuracy.

    `depths` and `distractors` (from, to) say how hard it is. `combinations` keeps a quarter of the pairs of
    an operator and what it selects for the test of systematic generalisation: "seen" has the others.
    """

    grid: int = 5
    colours: int = 5
    letters: int = 6
    depths: tuple[int, ...] = (1,)
    distractors: tuple[int, int] = (1, 5)
    combinations: Literal["all", "seen", "held out"] = "all"
    operators: tuple[str, ...] = tuple(OPERATORS)
    rules: int = 11
    """Rows that a program is given, its end row included: enough for depth 7."""
    held_out: int = 512

    portion: ClassVar[int] = 128
    name: ClassVar[str] = "programs about scenes"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("grid", "colours", "letters"):
            require(
                getattr(self, name) >= 2, f"{name} is {getattr(self, name)}, but it takes 2 to tell apart"
            )
        require(
            len(self.depths) >= 1 and all(depth >= 1 and depth % 2 == 1 for depth in self.depths),
            f"depths is {self.depths}, but a depth is 1, 3, 5, …",
        )
        require(
            self.rules > 3 * (max(self.depths) // 2) + 1,
            f"rules is {self.rules}, but a program of depth {max(self.depths)} and its end take "
            f"{3 * (max(self.depths) // 2) + 2} rows",
        )
        if self.combinations not in COMBINATIONS:
            raise unknown("combinations", self.combinations, COMBINATIONS)
        least, most = self.distractors
        room = self.cells - max(self.depths)
        require(
            0 <= least <= most <= room,
            f"distractors is {self.distractors}, but it is a range within 0 to {room}",
        )
        for name in self.operators:
            if name not in OPERATORS:
                raise unknown("operator", name, OPERATORS)
        truths = [name for name in self.operators if OPERATORS[name] not in (GO, COLOUR, LETTER)]
        require(
            bool(self.operators) and (bool(truths) or max(self.depths) == 1),
            f"operators is {self.operators}, but a condition takes one that is true or false",
        )

    @property
    def cells(self) -> int:
        return self.grid**2

    @property
    def classes(self) -> int:
        return 2 + self.cells + self.letters + self.colours

    @property
    def symbols(self) -> int:
        """One more than the largest id in a row."""
        return max(SWITCH, FIRST + max(self.colours, self.letters) - 1) + 1

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = torch.zeros(size, self.rules + self.cells + 1, 4, dtype=torch.long)
        targets = torch.zeros(size, dtype=torch.long)
        which = torch.randint(len(self.depths), (size,), generator=generator)
        for at, depth in enumerate(self.depths):
            waiting = (which == at).nonzero()[:, 0]
            while len(waiting):
                rows, answers, good = self._draw(2 * len(waiting), depth // 2, generator)
                rows, answers = rows[good][: len(waiting)], answers[good][: len(waiting)]
                inputs[waiting[: len(rows)]], targets[waiting[: len(rows)]] = rows, answers
                waiting = waiting[len(rows) :]
        return inputs, targets

    def _draw(self, size: int, conditions: int, generator: torch.Generator):
        """Programs with so many conditions, and scenes, and which of them are good."""
        slots = 2 * conditions + 1  # condition, leaf, condition, leaf, …, last leaf
        truthful = [n for n in self._allowed() if n not in (GO, COLOUR, LETTER)]
        operator = torch.stack(
            [_choose(truthful if slot % 2 == 0 and slot < slots - 1 else self._allowed(), size, generator)
             for slot in range(slots)], dim=1,
        )  # fmt: skip
        colour = torch.randint(self.colours, (size, slots), generator=generator)
        letter = torch.randint(self.letters, (size, slots), generator=generator)
        any_colour, any_letter = operator == COLOUR, operator == LETTER
        good = self._kept_apart(operator, colour, letter).all(dim=1)
        matches = any_colour[..., None] | (colour[..., None] == torch.arange(self.colours))
        matches = matches[..., None] & (
            any_letter[..., None] | (letter[..., None] == torch.arange(self.letters))
        )[:, :, None]  # fmt: skip
        matches = matches.flatten(2).int()
        total = matches.sum(dim=1)
        mine = (matches == 1) & (total[:, None] == 1)
        good &= mine.any(dim=2).all(dim=1)
        kind = _pick(mine.flatten(0, 1), generator).view(size, slots)
        truth = torch.rand(size, slots, generator=generator) < 0.5
        there = (operator != EXIST) | truth
        cell, free, placed = self._places(operator, truth, there, generator)
        good &= placed
        scene = torch.zeros(size, self.cells, dtype=torch.long)  # 0: empty; else kind and one
        for slot in range(slots):
            index = torch.where(there[:, slot], cell[:, slot], 0)[:, None]
            old = scene.gather(1, index)
            scene.scatter_(1, index, torch.where(there[:, slot, None], kind[:, slot, None] + 1, old))
        good &= self._distract(scene, free, total == 0, generator)
        answer = self._answers(operator, truth, cell, kind)
        settled = answer[:, -1]
        for slot in range(slots - 3, -1, -2):
            settled = torch.where(truth[:, slot], answer[:, slot + 1], settled)
        return self._rows(operator, colour, letter, scene), settled, good

    def _allowed(self) -> list[int]:
        return [OPERATORS[name] for name in self.operators]

    def _kept_apart(self, operator: Tensor, colour: Tensor, letter: Tensor) -> Bool[Tensor, "b s"]:
        """Whether each operator may ask for what it selects, in this split."""
        if self.combinations == "all":
            return torch.ones_like(operator, dtype=torch.bool)
        selected = colour * (operator != COLOUR) + letter * (operator != LETTER)
        kept = (operator + selected) % 4 == 0
        if self.combinations == "seen":
            return ~kept
        kept[:, :-1] = True
        return kept

    def _places(self, operator, truth, there, generator):
        """A cell for every object, by the truth of its parity; what is left; whether all found one."""
        size, slots = operator.shape
        at = torch.arange(self.cells)
        x, y = at % self.grid, at // self.grid
        odd = torch.where(operator[..., None] >= PRODUCT_EVEN, (x * y) % 2, (x + y) % 2) == 1
        wants_odd = truth == ((operator == SUM_ODD) | (operator == PRODUCT_ODD))
        fits = (operator < SUM_EVEN)[..., None] | (odd == wants_odd[..., None])
        free = torch.ones(size, self.cells, dtype=torch.bool)
        placed, cells = torch.ones(size, dtype=torch.bool), []
        for slot in range(slots):
            open_ = free & fits[:, slot]
            placed &= open_.any(dim=1)
            cells.append(_pick(open_, generator))
            free &= (at != cells[-1][:, None]) | ~there[:, slot, None]
        return torch.stack(cells, dim=1), free, placed

    def _distract(self, scene, free, unasked: Bool[Tensor, "b kinds"], generator) -> Bool[Tensor, "b"]:
        """Objects that no selector matches, into cells that are left; whether there are such."""
        least, most = self.distractors
        count = torch.randint(least, most + 1, (len(scene), 1), generator=generator)
        order = torch.rand(scene.shape, generator=generator).masked_fill(~free, 2).argsort(dim=1)
        for turn in range(most):
            index = order[:, turn, None]
            kind = _pick(unasked, generator)[:, None] + 1
            scene.scatter_(1, index, torch.where(turn < count, kind, scene.gather(1, index)))
        return unasked.any(dim=1) | (count[:, 0] == 0)

    def _answers(self, operator, truth, cell, kind) -> Int[Tensor, "b s"]:
        letter, colour = kind % self.letters, kind // self.letters
        answer = torch.where(truth, 0, 1)
        answer = torch.where(operator == GO, 2 + cell, answer)
        answer = torch.where(operator == LETTER, 2 + self.cells + letter, answer)
        return torch.where(operator == COLOUR, 2 + self.cells + self.letters + colour, answer)

    def _rows(self, operator, colour, letter, scene) -> Int[Tensor, "b n 4"]:
        size, slots = operator.shape
        rows = torch.zeros(size, self.rules + self.cells + 1, 4, dtype=torch.long)
        at = 0
        for slot in range(slots):
            rows[:, at, 0] = operator[:, slot]
            rows[:, at, 1] = torch.where(operator[:, slot] == COLOUR, 1, FIRST + colour[:, slot])
            rows[:, at, 2] = torch.where(operator[:, slot] == LETTER, 1, FIRST + letter[:, slot])
            at += 1
            if slot % 2 == 0 and slot < slots - 1:
                rows[:, at, 0] = SWITCH
                at += 1
        rows[:, at, 3] = 1
        full, kind = scene > 0, (scene - 1).clamp(min=0)
        rows[:, self.rules : -1, 1] = torch.where(full, FIRST + kind // self.letters, 0)
        rows[:, self.rules : -1, 2] = torch.where(full, FIRST + kind % self.letters, 0)
        rows[:, -1, 3] = 1
        return rows

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.classes)

    def describe(self, rows: Int[Tensor, "n 4"]) -> str:
        """The program in words."""
        program = rows[: int(rows[:, 3].argmax())].tolist()
        words = [self._phrase(*row[:3]) for row in program if row[0] != SWITCH]
        *chain, last = words
        pairs = zip(chain[::2], chain[1::2])
        return "".join(f"if {condition} then {leaf}, else " for condition, leaf in pairs) + last

    @staticmethod
    def _phrase(operator: int, colour: int, letter: int) -> str:
        what = "object" if letter == 1 else chr(ord("a") + letter - FIRST)
        return f"{NAMES[operator]}({'' if colour == 1 else f'colour {colour - FIRST} '}{what})"

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


def _choose(among: Sequence[int], size: int, generator: torch.Generator) -> Int[Tensor, "b"]:
    return torch.tensor(among)[torch.randint(len(among), (size,), generator=generator)]


def _pick(allowed: Bool[Tensor, "b n"], generator: torch.Generator) -> Int[Tensor, "b"]:
    """One allowed place a row, all as likely; anything where none is."""
    return torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1).argmax(dim=1)
