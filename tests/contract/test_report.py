"""Reports, as text and as data, and how a suite is run."""

import pytest

from regardant.contract import Report, Verdict, check, run, suites
from regardant.core.supports import Supports
from tests.contract.sound import RunningMean

REPORT = Report(
    "mean",
    "sequence",
    [
        Verdict("step", "passed", "stepping equals forward", 0.25),
        Verdict("causality", "failed", "future leak: changing token 9 moved position 5", 0.5),
        Verdict("cross", "skipped", "it has no cross-attention"),
        Verdict("time", "exempt", "it waits for nobody"),
    ],
)


def test_text_has_a_headline_and_a_line_a_property():
    assert str(REPORT).splitlines() == [
        "mean (sequence) BREAKS its contract: 1 passed, 1 failed, 1 skipped, 1 exempt, 0.8 s",
        "  passed   step       stepping equals forward",
        "  FAILED   causality  future leak: changing token 9 moved position 5",
        "  skipped  cross      it has no cross-attention",
        "  exempt   time       it waits for nobody",
    ]


def test_only_a_failure_breaks_the_contract():
    assert not REPORT.passed
    kept = Report("mean", "sequence", [verdict for verdict in REPORT.verdicts if verdict.status != "failed"])
    assert kept.passed
    assert kept.headline == "mean (sequence) keeps its contract: 1 passed, 1 skipped, 1 exempt, 0.2 s"


def test_data_says_the_same():
    data = REPORT.as_dict()
    assert data["passed"] is False
    assert data["seconds"] == 0.75
    assert data["properties"][1] == {
        "property": "causality",
        "status": "failed",
        "detail": "future leak: changing token 9 moved position 5",
        "seconds": 0.5,
    }


def test_a_verdict_is_found_by_its_property():
    assert REPORT.verdict("cross").status == "skipped"
    with pytest.raises(ValueError, match="no property is called 'speed'; this report has step, causality"):
        REPORT.verdict("speed")


class Excused(RunningMean):
    """Declares that it cannot be asked for its memory."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, padding=False, grouped=False,
        time=1.0, state=0.0, exempt={"memory": "it is measured elsewhere"},
    )  # fmt: skip


class Misspelt(RunningMean):
    """Is exempt from a property that there is not."""

    supports = Supports(exempt={"memmory": "a slip"})


def test_an_exemption_is_reported_with_its_reason():
    verdict = check(Excused, examples=2).verdict("memory")
    assert (verdict.status, verdict.detail) == ("exempt", "it is measured elsewhere")


def test_an_exemption_from_nothing_is_an_error():
    with pytest.raises(ValueError, match="exempt of Misspelt names 'memmory'; the properties are"):
        check(Misspelt, examples=2)


def test_progress_names_every_property_as_it_begins():
    seen = []
    check(RunningMean, examples=2, progress=lambda name, title: seen.append((name, title)))
    assert seen == [("RunningMean", title) for title in suites.SUITES["sequence"]]


def test_a_system_that_cannot_be_imported_breaks_its_contract(monkeypatch):
    def resolve(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(suites.catalog, "resolve", resolve)
    (report,) = run(["softmax"])
    assert not report.passed
    assert report.verdict("import").detail == "No module named 'softmax'"


def test_a_kind_without_a_suite_is_an_error():
    with pytest.raises(ValueError, match="kind is 'fusion', but contract suites exist for sequence"):
        run([], kind="fusion")


def test_examples_must_be_drawn():
    with pytest.raises(ValueError, match="examples is 0, but at least 1 configuration must be drawn"):
        check(RunningMean, examples=0)
