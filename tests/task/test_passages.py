"""Passages of source files: equal lengths, other files for other draws."""

from types import SimpleNamespace

import pytest
import torch

from regardant.task.passages import passages


def characters(text, **options):
    return SimpleNamespace(input_ids=torch.tensor([[ord(c) for c in text]]))


def test_draws_have_files_of_their_own(tmp_path):
    for number in range(5):
        (tmp_path / f"file{number}.py").write_text("#" * 10 + chr(97 + number) * 200)
    (tmp_path / "short.py").write_text("x")
    drawn = [passages(characters, length=20, count=2, draw=draw, skip=10, folder=tmp_path) for draw in (0, 1)]
    assert [each.shape for each in drawn] == [(2, 20), (2, 20)]
    letters = {chr(int(row[0])) for each in drawn for row in each}
    assert len(letters) == 4 and letters < set("abcde")
    assert all((row == row[0]).all() for each in drawn for row in each)
    again = passages(characters, length=20, count=2, skip=10, folder=tmp_path)
    assert torch.equal(again, drawn[0])


def test_too_few_files_are_told(tmp_path):
    (tmp_path / "one.py").write_text("x" * 300)
    with pytest.raises(ValueError, match="holds 1 files of 20 tokens"):
        passages(characters, length=20, count=2, skip=10, folder=tmp_path)
