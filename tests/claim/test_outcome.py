"""Figures with their spread, criteria, and the verdict that follows from them."""

import json
import math

import pytest

from regardant.claim.outcome import (
    COST_ONLY,
    FAILS,
    HOLDS,
    Figure,
    Outcome,
    Spread,
    cost,
    exact,
    quality,
)


def outcome(*criteria):
    return Outcome(setting="here", figures=[], criteria=criteria)


GOOD, BAD = quality("good", 1.0, at_least=0.9), quality("bad", 0.8, at_least=0.9)
CHEAP, DEAR = cost("cheap", 1.0, at_most=1.1), cost("dear", 1.2, at_most=1.1)
EQUAL = exact("equal", 0.0, at_most=0.0)


@pytest.mark.parametrize(
    ("criteria", "verdict"),
    [
        ([GOOD], HOLDS),
        ([GOOD, CHEAP, EQUAL], HOLDS),
        ([GOOD, BAD], FAILS),
        ([GOOD, DEAR], FAILS),
        ([CHEAP, EQUAL], COST_ONLY),
        ([EQUAL], COST_ONLY),
        ([DEAR], FAILS),
        ([quality("unmeasured", math.nan, at_least=0.0)], FAILS),
        ([quality("unmeasured", math.nan, at_most=0.0)], FAILS),
    ],
)
def test_the_verdict_follows_from_the_criteria(criteria, verdict):
    assert outcome(*criteria).verdict == verdict


def test_nobody_types_a_verdict():
    with pytest.raises(TypeError):
        Outcome(setting="", figures=[], criteria=[GOOD], verdict=HOLDS)
    with pytest.raises(AttributeError):
        outcome(BAD).verdict = HOLDS


def test_bounds_are_inclusive():
    assert quality("met", 0.9, at_least=0.9).holds and quality("met", 0.9, at_most=0.9).holds


def test_spread_is_the_sample_deviation():
    spread = Spread((1.0, 2.0, 6.0))
    assert spread.mean == 3.0
    assert spread.deviation == pytest.approx(math.sqrt(7))
    assert spread.error == pytest.approx(math.sqrt(7 / 3))
    assert str(spread) == "3 ± 2.6"
    assert Spread((2.0,)).deviation == 0 and str(Spread((2.0,))) == "2"


def test_a_figure_parts_ours_from_the_baselines():
    found = {name: {"score": Spread((value,))} for name, value in {"a": 1.0, "b": 2.0, "c": 3.0}.items()}
    found["c"]["other"] = Spread((9.0,))
    figure = Figure.of("score", found, "score", ours="b")
    assert list(figure.ours) == ["b"] and list(figure.baseline) == ["a", "c"]
    assert Figure.of("other", found, "other", ours=()).baseline == {"c": Spread((9.0,))}
    assert Figure.once("time", {"a": 1.5}).ours == {"a": Spread((1.5,))}


def test_everything_goes_into_json():
    made = Outcome(
        setting="small",
        figures=[Figure.once("ratio", {"a": math.inf}, {"b": 1.0})],
        criteria=[quality("not measured", math.nan, at_least=0.0)],
        notes=["a note"],
    )
    data = json.loads(json.dumps(made.as_json(), allow_nan=False))
    assert data["verdict"] == FAILS and data["notes"] == ["a note"]
    assert data["figures"][0]["ours"]["a"] == {"mean": "inf", "deviation": "nan", "values": ["inf"]}
    assert data["criteria"][0] == {
        "about": "quality", "rule": "not measured", "found": "nan", "sense": "at least", "bound": 0.0,
        "holds": False,
    }  # fmt: skip


def test_bad_input():
    with pytest.raises(ValueError, match="criteria is empty"):
        outcome()
    with pytest.raises(ValueError, match="takes one bound"):
        quality("both", 1.0, at_least=0.0, at_most=2.0)
    with pytest.raises(ValueError, match="takes one bound"):
        cost("neither", 1.0)
    with pytest.raises(ValueError, match="values is empty"):
        Spread(())
