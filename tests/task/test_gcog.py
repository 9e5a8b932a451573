"""Generic COG: programs about scenes, held against an evaluator written apart."""

import pytest
import torch

from regardant.task.gcog import FIRST, GCOG, NAMES, SWITCH


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def oracle(task, rows):
    """The answer of a program about its scene, row by row; every selector's objects are counted."""
    program = rows[: task.rules].tolist()
    program = program[: [row[3] for row in program].index(1)]
    scene = {at: tuple(row[1:3]) for at, row in enumerate(rows[task.rules : -1].tolist()) if any(row)}

    def found(colour, letter):
        return [at for at, (c, s) in scene.items() if colour in (1, c) and letter in (1, s)]

    def value(operator, colour, letter, _):
        name, at = NAMES[operator], found(colour, letter)
        if name == "exist":
            assert len(at) <= 1
            return 0 if at else 1
        assert len(at) == 1, "a selector finds one object"
        x, y = at[0] % task.grid, at[0] // task.grid
        if name == "go":
            return 2 + at[0]
        if name == "getshape":
            return 2 + task.cells + scene[at[0]][1] - FIRST
        if name == "getcolor":
            return 2 + task.cells + task.letters + scene[at[0]][0] - FIRST
        number = x + y if name.startswith("sum") else x * y
        return 0 if (number % 2 == 0) == name.endswith("even") else 1

    everything = [value(*row) for row in program if row[0] != SWITCH]  # of branches not taken, too
    while len(everything) > 1:
        condition, leaf, *rest = everything
        if condition == 0:
            return leaf
        everything = rest
    return everything[0]


@pytest.mark.parametrize("depth", [1, 3, 5, 7])
def test_answers_are_the_oracles(depth):
    task = GCOG(depths=(depth,))
    inputs, targets = task.batch(200, generator())
    assert [oracle(task, rows) for rows in inputs] == targets.tolist()


def test_pitfall_many_distractors_and_none_of_them_matches():
    task = GCOG(depths=(1, 3), distractors=(10, 15))
    inputs, targets = task.batch(300, generator())
    objects = (inputs[:, task.rules : -1, 1] > 0).sum(dim=1)
    assert objects.min() >= 10 and objects.max() <= 18
    assert [oracle(task, rows) for rows in inputs] == targets.tolist()


@pytest.mark.parametrize("name", ["exist", "sumeven", "sumodd", "producteven", "productodd"])
def test_pitfall_truth_is_balanced(name):
    targets = GCOG(operators=(name,)).batch(4000, generator())[1]
    assert set(targets.tolist()) == {0, 1}
    assert abs((targets == 0).double().mean() - 0.5) < 0.03


def test_both_branches_are_taken_equally_often():
    task = GCOG(depths=(3,), operators=("exist", "go"))
    inputs, _ = task.batch(3000, generator())
    condition = inputs[:, 0]
    scene = inputs[:, task.rules : -1]
    holds = ((scene[..., 1:3] == condition[:, None, 1:3]).all(dim=-1)).any(dim=1)
    asks = condition[:, 0] == 2
    assert abs(holds[asks].double().mean() - 0.5) < 0.04


def test_held_out_combinations_are_never_seen():
    def asked(split):
        inputs = GCOG(combinations=split, depths=(1,)).batch(6000, generator())[0]
        return {tuple(row) for row in inputs[:, 0, :3].tolist()}

    seen, held = asked("seen"), asked("held out")
    assert not seen & held
    assert asked("all") == seen | held
    assert 0.1 < len(held) / len(seen | held) < 0.4


def test_a_program_in_words():
    task = GCOG(depths=(3,))
    rows = torch.zeros(task.rules, 4, dtype=torch.long)
    rows[0], rows[1], rows[2] = torch.tensor([[2, 3, 2, 0], [10, 0, 0, 0], [3, 2, 4, 0]])
    rows[3, :3], rows[4, 3] = torch.tensor([4, 1, 7]), 1
    assert task.describe(rows) == "if exist(colour 1 a) then go(colour 0 c), else getcolor(f)"


def test_programs_end_and_then_there_is_nothing():
    inputs, _ = GCOG(depths=(5,)).batch(3, generator())
    assert (inputs[:, 7, 3] == 1).all() and (inputs[:, 8:11] == 0).all() and (inputs[:, -1, 3] == 1).all()


@pytest.mark.parametrize(
    ("own", "word"),
    [
        ({"grid": 1}, "grid is 1"),
        ({"depths": (2,)}, "depths is"),
        ({"depths": (9,)}, "take 14 rows"),
        ({"distractors": (0, 25)}, "within 0 to 24"),
        ({"operators": ("walk",)}, "walk"),
        ({"operators": ("go",), "depths": (3,)}, "a condition takes one that is true or false"),
    ],
)
def test_bad_input(own, word):
    with pytest.raises(ValueError, match=word):
        GCOG(**own)
