"""The table of edits by architectures: every edit and architecture is in it, and a part is tried again."""

from __future__ import annotations

import re

import pytest

from regardant.contract.architectures import BEGIN, DOCS, END, edits, tried
from regardant.world.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def rows():
    text = DOCS.read_text(encoding="utf-8")
    text = text[text.index(BEGIN) : text.index(END, text.index(BEGIN))]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names = re.findall(r"`([^`]+)`", lines[0])
    table = {}
    for line in lines[2:]:
        family, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        table[family] = dict(zip(names, cells))
    return table


def test_all_are_in_it(rows):
    assert set(rows) == set(FAMILIES)
    for cells in rows.values():
        assert set(cells) == set(edits()), "run python -m regardant.contract.architectures"


@pytest.mark.parametrize("name", sorted(edits()))
def test_an_edit_runs_where_it_says_so(rows, name):
    maker = edits()[name]
    for family in maker.families:
        assert rows[family][name] == "yes" == tried(maker, FAMILIES[family])
    assert rows["deberta"][name] != "yes"
