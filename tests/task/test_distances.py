"""Copying, needles and long windows: what is drawn, and how far apart the two ends of a question lie."""

import pytest
import torch

from regardant.task.copying import Copying
from regardant.task.extrapolation import Extrapolation, loss_by_length
from regardant.task.needle import Needle, distances
from regardant.task.score import IGNORED


def generator():
    return torch.Generator().manual_seed(0)


def test_a_string_comes_back_after_its_pause():
    task = Copying(symbols=5, string=3, pauses=(0, 4))
    pause, go = 5, 6
    seen = set()
    for tokens, labels in zip(*task.batch(64, generator())):
        said = labels[-3:]
        first = int((tokens != pause).nonzero()[0])
        seen.add(first)
        assert tokens[first : first + 3].equal(said)
        assert tokens[first + 3 : -3].eq(pause).all()
        assert tokens[-3] == go and tokens[-2:].equal(said[:2])
        assert labels[:-3].eq(IGNORED).all()
    assert seen == {0, 4}


def test_the_distance_is_how_far_back_the_symbol_lies():
    task = Copying(symbols=500, string=3, pauses=(0, 7), held_out=8)
    for distance, (tokens, labels) in task.at_each_distance():
        for row, wanted in zip(tokens, labels):
            for at in range(len(row) - 3, len(row)):
                assert row[at - distance] == wanted[at]


def test_the_needle_is_behind_its_key():
    task = Needle(length=21, needles=3, values=4, noise=6)
    tokens, labels = task.batch(200, generator())
    assert tokens.max() < task.vocabulary
    far = distances(tokens)
    for row, label, distance in zip(tokens, labels[:, -1], far):
        place = len(row) - 1 - distance
        assert row[place] == row[-1] and row[place + 1] == label
        assert label >= 9
        # Every key stands there once, and once more at the end.
        assert [(row[:-1] == key).sum() for key in (6, 7, 8)] == [1, 1, 1]
    assert labels[:, :-1].eq(IGNORED).all()
    assert far.min() == 2 and far.max() == 20


def test_long_windows_are_scored_at_their_end(tmp_path):
    for name in "abcdefghijklmnopqrstuvwxyz":
        (tmp_path / f"{name}.py").write_text(f"# {name}\n" * 100)
    task = Extrapolation(length=8, times=4, held_out=3, folder=tmp_path)
    assert task.batch(2, generator())[0].shape == (2, 8)
    (tokens, targets), (_, whole) = next(task.validation()), next(task.long().validation())
    assert tokens.shape == targets.shape == (3, 32)
    assert targets[:, :24].eq(IGNORED).all()
    assert targets[:, 24:].equal(whole[:, 24:])


def test_the_loss_at_a_length_is_that_of_the_last_half():
    losses = torch.arange(16.0)[None]
    found = loss_by_length(losses, 4, 4)
    assert [(at, loss.item()) for at, loss in found] == [(4, 2.5), (8, 5.5), (16, 11.5)]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Copying(symbols=1), "symbols is 1"),
        (lambda: Copying(pauses=()), "pauses is"),
        (lambda: Needle(length=8), "needles and the question take 9"),
        (lambda: Needle(values=1), "values is 1"),
        (lambda: Extrapolation(times=0), "times is 0"),
    ],
)
def test_settings_that_make_no_task_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
