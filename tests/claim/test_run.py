"""Running an experiment: units that survive, evidence that says what it is."""

import json
import os

import pytest

from regardant.atlas import record
from regardant.atlas.source import fingerprint
from regardant.claim.run import module_of, run
from tests.claim.small import put, small_package


@pytest.fixture
def claim(package, tmp_path):
    def start(slug="tiny", **own):
        return run(slug, **{"package": package, "out": tmp_path / "work", "seeds": (0, 1)} | own)

    return start


def test_every_variant_runs_with_every_seed_and_the_outcome_goes_on_file(claim, experiment, package):
    claimed = claim()
    assert experiment.LOG == ["exactness", (10, 0), (5, 0), (10, 1), (5, 1)]
    assert claimed.outcome.verdict == "holds"
    on_file = record.read("tiny", package=package)["claim"]
    assert on_file == json.loads(json.dumps(claimed.evidence))
    assert on_file["seeds"] == [0, 1] and on_file["paper"] == "5 points better."
    assert on_file["figures"][0]["ours"]["ours"]["values"] == [10.0, 11.0]
    assert set(on_file["fingerprint"]) == {"regardant.sequence.tiny", "regardant.claim.tiny"}
    for module, its in on_file["fingerprint"].items():
        assert its == fingerprint(module, package=package)
    assert {"python", "torch", "regardant"} <= set(on_file["versions"])
    assert {"processor", "cores", "threads"} <= set(on_file["hardware"])
    assert on_file["seconds"] >= 0 and on_file["date"].count("-") == 2


def test_the_contracts_verdict_stays_on_file(claim, experiment, package):
    record.record_contract("tiny", "tiny", {"passed": True}, package=package)
    claim()
    assert record.read("tiny", package=package)["contract"] == {"tiny": {"passed": True}}


@pytest.mark.parametrize("at", [(10, 0), (5, 0), (5, 1)])
def test_a_killed_run_goes_on_where_it_was(claim, experiment, at):
    experiment.DIE_AT = at
    with pytest.raises(experiment.Killed):
        claim()
    before = list(experiment.LOG)
    experiment.DIE_AT = None
    claimed = claim()
    assert experiment.LOG == ["exactness", (10, 0), (5, 0), (10, 1), (5, 1)]
    assert len(before) < 5 and claimed.outcome.verdict == "holds"
    claim()
    assert len(experiment.LOG) == 5


def test_more_seeds_add_to_those_that_are_there(claim, experiment):
    claim()
    claimed = claim(seeds=(0, 1, 2))
    assert experiment.LOG[5:] == [(10, 2), (5, 2)]
    assert claimed.evidence["figures"][0]["ours"]["ours"]["mean"] == 11.0


def test_fresh_forgets_the_units_and_leaves_other_files(claim, experiment, tmp_path):
    claim()
    mine = tmp_path / "work" / "tiny" / "notes.txt"
    mine.write_text("mine")
    claim(fresh=True)
    assert len(experiment.LOG) == 10 and mine.exists()


@pytest.mark.parametrize("changed", ["sequence/tiny.py", "claim/tiny.py", "train/part.py", "core/part.py"])
def test_units_of_other_code_are_measured_again(claim, experiment, package, changed):
    claim()
    path = package / changed
    put(path, path.read_text() + "\ny = 2\n")
    claim()
    assert len(experiment.LOG) == 10


def test_a_comment_changes_nothing(claim, experiment, package):
    claim()
    path = package / "claim" / "tiny.py"
    put(path, path.read_text() + "\n# a remark\n")
    claim()
    assert len(experiment.LOG) == 5


def test_a_spoilt_unit_is_said_in_a_sentence(claim, experiment, tmp_path):
    claim()
    for text in ("{", "[]", '{"values": {"score": "many"}}'):
        (tmp_path / "work" / "tiny" / "ours.seed-0.json").write_text(text)
        with pytest.raises(ValueError, match=r"ours.seed-0.json cannot be read .* --fresh"):
            claim()
    claim(fresh=True)


def test_a_crash_while_writing_a_unit_leaves_no_half_of_it(claim, experiment, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        claim()
    assert list((tmp_path / "work" / "tiny").iterdir()) == []
    monkeypatch.undo()


def test_a_nan_survives_being_written(claim, experiment):
    experiment.claim.__globals__["unit"] = lambda offset: lambda run: {"score": float("nan")}
    assert claim().outcome.verdict == "does not hold here"
    assert claim().outcome.verdict == "does not hold here"


def test_a_try_out_is_shortened_kept_apart_and_never_recorded(claim, experiment, package, tmp_path):
    with pytest.raises(ValueError, match="must not be recorded"):
        claim(scale=0.1)
    claimed = claim(scale=0.1, record=False)
    assert claimed.path is None and record.read("tiny", package=package) == {}
    unit = json.loads((tmp_path / "work" / "tiny.try" / "ours.seed-0.json").read_text())
    assert unit["values"]["steps"] == 10
    claim()
    assert len(experiment.LOG) == 10


def test_progress_tells_the_share_that_is_done(claim, experiment):
    ticks = []
    claim(progress=ticks.append)
    assert [tick.unit for tick in ticks] == [
        "exactness, seed 0", "ours, seed 0", "theirs, seed 0", "ours, seed 1", "theirs, seed 1",
    ]  # fmt: skip
    assert [tick.done for tick in ticks] == [0, 0.2, 0.4, 0.6, 0.8]
    assert ticks[0].left is None and all(tick.left >= 0 for tick in ticks[1:])


@pytest.mark.parametrize(
    ("own", "word"),
    [
        ({"slug": "bare"}, r"'bare' has no experiment yet .*; those that have one are tiny"),
        ({"slug": "tny"}, r"no card or system is called 'tny'; the nearest are tiny"),
        ({"seeds": ()}, "seeds is"),
        ({"seeds": (1, 1)}, "seeds is"),
        ({"seeds": (-1,)}, "seeds is"),
        ({"scale": 0.0, "record": False}, "scale is 0"),
        ({"scale": 2.0, "record": False}, "scale is 2"),
    ],
)
def test_bad_input_is_said_in_a_sentence(claim, experiment, own, word):
    with pytest.raises(ValueError, match=word):
        claim(**own)


def test_a_system_that_is_not_written_is_said(tmp_path):
    package = small_package(tmp_path)
    (package / "sequence" / "tiny.py").unlink()
    with pytest.raises(ValueError, match=r"regardant.sequence.tiny, which does not exist"):
        run("tiny", package=package, out=tmp_path / "work")


def test_an_experiment_that_returns_something_else_is_said(claim, experiment):
    experiment.claim = lambda context: {"verdict": "holds"}
    with pytest.raises(ValueError, match="returned dict, but an experiment returns an Outcome"):
        claim()


def test_modules_are_named_after_cards():
    assert module_of("lightning-attention-2") == "regardant.claim.lightning_attention_2"
    assert module_of("3d-attention") == "regardant.claim.paper_3d_attention"
