"""Byte language modelling: the split, the windows."""

from pathlib import Path

import pytest
import torch

from regardant.task.bytes import Bytes, is_for_validation, library_folder, read_library, source_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty modules, each of bytes that no other has two of in a row."""
    for index in range(40):
        place = tmp_path / f"module{index}.py" if index % 2 else tmp_path / f"package{index}" / "inside.py"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(bytes([48 + index]) * 50)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_bytes(b"\xff" * 50)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "left_out.py").write_bytes(b"\xff" * 50)
    return tmp_path


def test_no_file_is_on_both_sides_and_none_is_lost(folder):
    train, validation = (set(text.tolist()) - {0} for text in read_library(folder))
    assert not train & validation
    assert train | validation == set(range(48, 88))


def test_a_package_lies_on_one_side():
    assert is_for_validation(Path("json.py")) == is_for_validation(Path("json/decoder.py"))
    files = source_files(library_folder())
    sides = {(path.parts[0].removesuffix(".py"), is_for_validation(path)) for path in files}
    assert len(sides) == len({module for module, _ in sides})


def test_the_library_of_this_python_has_text_for_both_sides():
    train, validation = read_library(library_folder())
    assert len(train) > 2_000_000
    assert 0.03 < len(validation) / (len(train) + len(validation)) < 0.3
    assert read_library(library_folder())[0] is train


def test_targets_are_the_next_bytes_of_the_training_text(folder):
    task = Bytes(length=16, folder=folder)
    inputs, targets = task.batch(32, torch.Generator().manual_seed(0))
    assert inputs.shape == targets.shape == (32, 16)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = bytes(read_library(folder)[0].tolist())
    assert all(bytes([*row.tolist(), last]) in text for row, last in zip(inputs, targets[:, -1].tolist()))


def test_validation_is_the_same_every_time_and_of_the_other_text(folder):
    task = Bytes(length=8, folder=folder, held_out=5)
    once, again = ([inputs for inputs, _ in task.validation()] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, again))
    assert set(torch.cat(once).flatten().tolist()) <= set(read_library(folder)[1].tolist())


def test_a_window_longer_than_the_text_is_said(folder):
    with pytest.raises(ValueError, match="length is 100000"):
        Bytes(length=100_000, folder=folder).batch(1, torch.Generator())


def test_a_folder_without_source_is_said(tmp_path):
    with pytest.raises(ValueError, match="too few"):
        Bytes(folder=tmp_path).batch(1, torch.Generator())
