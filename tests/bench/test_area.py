"""Growth with the area: every mixer and backbone as its paper claims, counted, and as measured on file."""

import json
from math import log

import pytest

from bench import area
from bench.results_file import FOLDER

ENDS = (area.SIDES[0], area.SIDES[-1])


@pytest.mark.parametrize("name", area.names())
def test_counts_grow_as_claimed(name):
    claimed = area.claim(name).exponent(ENDS)
    assert area.exponent(area.counted(name, ENDS)) == pytest.approx(claimed, abs=area.COUNTED)


def test_claims_have_the_exponents_of_what_they_say():
    assert area.power(1.5).exponent() == pytest.approx(1.5)
    assert area.CLAIMED["spectformer-gate"].exponent(ENDS) == pytest.approx(
        1 + log(log(256**2) / log(32**2)) / log(64)
    )
    assert area.tokens(16, 1).exponent(ENDS) == pytest.approx(2 * log(257 / 5) / log(64))
    # The last stage sees everything, on maps of 1 and of 8 positions a side.
    whole = area.stages("", (0, 0, 0, 1), area._stripes)
    assert whole.exponent(ENDS) == pytest.approx(log(8**4) / log(64))


def test_claims_are_of_systems_that_there_are():
    assert set(area.CLAIMED) | area.NOT_ON_SHAPES <= set(area.names())


def test_transforms_are_counted_whole():
    found = area.counted("spectformer-gate", (8,))
    assert found == {8: 2 * 5 * 8 * 64 * 6 // 4}


def test_what_would_take_too_long_is_not_timed(monkeypatch):
    monkeypatch.setattr(area, "LONGEST", 0.0)
    monkeypatch.setattr(area, "clock", lambda calls, **_: [(side, Took(1e-3)) for side in calls])
    assert area.timed("davit-channel", (2, 4)) == {2: 1e-3}
    monkeypatch.setattr(area, "LONGEST", 1.0)
    assert area.timed("davit-channel", (2, 4)) == {2: 1e-3, 4: 1e-3}


class Took:
    def __init__(self, best):
        self.best = best


@pytest.mark.parametrize("path", sorted(FOLDER.glob("area-*.json")), ids=lambda path: path.stem)
def test_what_is_on_file_is_within_the_bounds(path):
    for name, row in json.loads(path.read_text(encoding="utf-8"))["rows"].items():
        assert abs(row["counted"] - row["claimed"]) <= area.COUNTED, name
        assert row["timed"] - row["claimed, of the sizes that were timed"] <= area.TIMED, name
