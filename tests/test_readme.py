"""The newcomer's lines of the README run as they stand there."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from regardant.train import recipe

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_lines_for_newcomers_train_a_backbone_and_draw_where_it_looks(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    section = README.read_text(encoding="utf-8").partition("\n## Train a vision backbone\n")[2]
    lines = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert len([line for line in lines.splitlines() if line]) <= 10
    monkeypatch.setattr(recipe, "DIGITS", replace(recipe.DIGITS, steps=3))
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert (tmp_path / "looks.png").read_bytes()[:4] == b"\x89PNG"
    assert (README.parent / "docs" / "pictures" / "looks.png").is_file()
