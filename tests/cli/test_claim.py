"""`regardant claim`: the table, JSON, exit codes."""

import json

import pytest
from typer.testing import CliRunner

import regardant.claim.run as runner
from regardant.claim.context import Tick
from regardant.claim.outcome import Figure, Outcome, Spread, quality
from regardant.cli.claim import ProgressLine
from regardant.cli.main import app


@pytest.fixture
def asked(monkeypatch):
    """The arguments that reach `run`; its answer is a claim that does not hold."""
    calls = []

    def answer(slug, **own):
        calls.append({"slug": slug, **own})
        outcome = Outcome(
            setting="small",
            figures=[
                Figure(
                    "score", {"ours": Spread((1.0, 3.0))}, {"one": Spread((4.0, 4.0)), "two": Spread((5.0,))}
                )
            ],
            criteria=[quality("ours is better", -2.0, at_least=0.0)],
            notes=["a remark"],
        )
        evidence = {"seeds": list(own["seeds"]), "seconds": 61.0, **outcome.as_json()}
        return runner.Claimed(slug=slug, paper="10 better", outcome=outcome, evidence=evidence, path=None)

    monkeypatch.setattr(runner, "run", answer)
    return calls


def invoke(*arguments):
    return CliRunner().invoke(app, ["claim", *arguments])


def test_a_claim_that_fails_is_a_finding_not_an_error(asked):
    result = invoke("moh", "--seeds", "3, 4")
    assert result.exit_code == 0
    assert asked[0]["slug"] == "moh" and asked[0]["seeds"] == (3, 4) and asked[0]["record"] is True
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["moh:", "does", "not", "hold", "here"] in lines
    assert ["score", "ours", "2", "±", "1.4", "one", "4", "±", "0"] in lines
    assert ["two", "5"] in lines
    assert ["no", "quality", "ours", "is", "better", "-2", "≥", "0"] in lines
    for words in ("10 better", "a remark", "1:01"):
        assert words in result.stdout


def test_json(asked):
    data = json.loads(invoke("moh", "--json", "--no-record").stdout)
    assert data["slug"] == "moh" and data["verdict"] == "does not hold here"
    assert asked[0]["record"] is False


def test_a_try_out_says_that_it_means_nothing(asked):
    assert "try-out at 0.1" in invoke("moh", "--scale", "0.1", "--no-record").stdout


@pytest.mark.parametrize("seeds", ["", "a", "0,,1", "-1", "1.5"])
def test_seeds_that_are_none_are_bad_input(asked, seeds):
    result = invoke("moh", "--seeds", seeds)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "seeds is" in result.stderr
    assert asked == []


def test_a_card_without_an_experiment_is_bad_input():
    result = invoke("consciousness-prior")
    assert result.exit_code == 2
    assert "'consciousness-prior' has no experiment yet" in result.stderr


def test_progress_is_a_line_a_unit_where_there_is_no_terminal(capsys):
    line = ProgressLine()
    for done in (0.0, 0.1, 0.2, 0.5):
        line(Tick("b, seed 0" if done == 0.5 else "a, seed 0", done, 60 * done, None if done == 0 else 90.0))
    line.end()
    said = capsys.readouterr().err.splitlines()
    assert said == ["  0%  a, seed 0  (0:00)", " 50%  b, seed 0  (0:30, 1:30 left)"]
