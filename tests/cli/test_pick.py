import json
from dataclasses import asdict, replace
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from regardant.cli.main import app
from regardant.compare import survey
from regardant.compare.bench import machine_of
from regardant.compare.clock import Timing
from regardant.compare.journal import Journal
from regardant.compare.machine import versions
from regardant.compare.measurement import Measurement
from regardant.compare.workload import Setting, settle
from tests.compare.sample_findings import write_sample

LENGTHS = (1024, 2048, 4096, 8192)
# name → seconds a thousand tokens, exponent, bytes a token
SYSTEMS = {
    "softmax": (2e-3, 2.0, 900),
    "lightning-attention-2": (4e-3, 1.0, 1200),
    "sliding-window": (3e-3, 1.0, 4000),
}


@pytest.fixture
def recorded(tmp_path):
    """A journal as `regardant cost` leaves it here, with figures that are known."""
    journal = Journal(tmp_path / "cost.jsonl")
    for name, (seconds, exponent, size) in SYSTEMS.items():
        setting = settle(Setting(name, dim=64, heads=2))
        for length in LENGTHS:
            time = seconds * (length / 1000) ** exponent
            blank = Measurement.blank(setting, "forward", "seconds", length)
            journal.append(asdict(blank.filled(timing=Timing.of([time, 1.1 * time, 1.2 * time]))))
            blank = Measurement.blank(setting, "forward", "bytes", length)
            journal.append(asdict(blank.filled(size=size * length)))
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    monkeypatch.setattr(survey, "Cost", None)


def pick(folder, *arguments):
    return CliRunner().invoke(app, ["pick", "--out", str(folder), *arguments])


def test_it_ranks_what_is_on_file_and_says_why(recorded):
    done = pick(recorded, *SYSTEMS, "--length", "8192", "--causal", "--memory", "1GB")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "width 64 with 2 heads" in lines[0]
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["1", "sliding-window"], ["2", "lightning-attention-2"], ["3", "softmax"],
    ]  # fmt: skip
    assert "the ranking is by time alone" in lines[5]
    assert "24 figures in" in done.stderr


def test_beyond_what_was_measured_it_extrapolates_and_rules_out(recorded):
    done = pick(recorded, *SYSTEMS, "--length", "32768", "--memory", "50MB", "--json")
    assert done.exit_code == 0, done.output
    found = {each["system"]: each for each in json.loads(done.stdout)}
    assert [found[name]["rank"] for name in SYSTEMS] == [2, 1, None]
    softmax = found["softmax"]["seconds"]
    assert softmax["value"] == pytest.approx(2e-3 * 32.768**2, rel=1e-6)
    assert (softmax["measured"], softmax["origin"]) == (False, 8192)
    assert found["sliding-window"]["reason"] == (
        "takes 131 MB at 32,768 (extrapolated from 8,192 by n^1.00), more than 50 MB"
    )


def test_figures_of_other_code_do_not_count(recorded):
    path = recorded / "cost.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"code": "0" * 16}) + "\n" for line in lines))
    done = pick(recorded, *SYSTEMS, "--length", "8192", "--no-measure", "--dim", "64", "--heads", "2")
    assert done.exit_code == 1
    assert done.stdout.count("its time at 8,192 is not on file") == 3


def test_systems_on_file_that_are_no_more_are_passed_over(recorded):
    path = recorded / "cost.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    write_sample(recorded / "compare")
    plan = json.loads((recorded / "compare" / "plan.json").read_text())
    plan["systems"][0] |= {"name": "gone", "parts": ["gone"]}
    (recorded / "compare" / "plan.json").write_text(json.dumps(plan))
    with path.open("a") as file:
        file.write(json.dumps(line | {"system": "nowhere:Gone"}) + "\n")
    done = pick(recorded, "--length", "8192", "--no-measure", "--json")
    assert done.exit_code == 0, done.output
    found = [each["system"] for each in json.loads(done.stdout)]
    assert "softmax" in found
    assert not {"gone", "nowhere:Gone"} & set(found)


def test_what_is_missing_is_measured(recorded, monkeypatch):
    asked = []

    class Recorder:
        def __init__(self, journal, **options):
            self.journal = journal

        def measure(self, settings, *, positions, phases):
            asked.append((settings[0].system, positions, phases))
            blank = Measurement.blank(settle(settings[0]), phases[0], "seconds", 128)
            timed = [
                replace(blank, length=length).filled(timing=Timing.of([1.0] * 3)) for length in positions
            ]
            return timed

    monkeypatch.setattr(survey, "Cost", Recorder)
    done = pick(recorded, "softmax", "flowformer", "--length", "4096", "--decode", "--causal", "--json")
    assert done.exit_code == 0, done.output
    assert asked == [
        ("softmax", [64, 512, 4096], ["decode"]),
        ("flowformer", [64, 512, 4096], ["decode"]),
    ]
    assert [(each["rank"], each["ties"]) for each in json.loads(done.stdout)] == [
        (1, ["flowformer"]), (1, ["softmax"]),
    ]  # fmt: skip


class Ladder:
    """Measures nothing; remembers what was asked for, and that a token takes as long as those before it."""

    asked: ClassVar[list] = []
    longest = 3.0
    now = 0.0

    def __init__(self, journal, **options):
        pass

    def measure(self, settings, *, phases, positions=(), lengths=(), memory=False):
        self.asked.append((*(setting.system for setting in settings), *phases, *positions, *lengths))
        Ladder.now += 1e-4 * max(positions, default=0)
        found = []
        for setting in map(settle, settings):
            for phase in phases:
                for length in positions or lengths:
                    blank = Measurement.blank(setting, phase, "seconds", length)
                    found.append(blank.filled(timing=Timing.of([1e-3] * 3), size=64))
        return found


@pytest.fixture
def ladder(monkeypatch):
    monkeypatch.setattr(survey, "Cost", Ladder)
    monkeypatch.setattr(survey, "perf_counter", lambda: Ladder.now)
    monkeypatch.setattr(Ladder, "asked", [])
    return Ladder.asked


def test_of_a_layout_the_parts_are_measured_with_their_options(tmp_path, ladder):
    done = pick(tmp_path, "based-like", "moh@top_k=1", "softmax+aaren", "--length", "512", "--json")
    assert done.exit_code == 0, done.output
    taylor, window = "linear-attention@features=taylor,states=8", "sliding-window@window=16"
    assert ladder == [
        (taylor, window, "forward", 64, 128, 256, 512), ("moh@top_k=1", "forward", 64, 128, 256, 512),
        ("softmax", "aaren", "forward", 64, 128, 256, 512),
    ]  # fmt: skip
    found = {each["system"]: each for each in json.loads(done.stdout)}
    assert set(found) == {"based-like", "moh@top_k=1", "softmax+aaren"}
    assert [found[name]["seconds"]["value"] for name in found] == [1e-3] * 3


def test_very_long_inputs_begin_short_and_are_read_no_longer_than_is_worth_it(tmp_path, ladder):
    done = pick(tmp_path, "softmax", "--length", "1048576", "--train", "--json")
    assert done.exit_code == 0, done.output
    assert ladder == [("softmax", "backward", *(2**k for k in range(12, 21)))]
    ladder.clear()
    done = pick(tmp_path, "softmax", "--length", "1048576", "--decode", "--json")
    # 2 ** 16 tokens took 6.6 s, so that twice as many may take 26; and those once more twice as many 105.
    assert ladder == [("softmax", "decode", 2**k) for k in (14, 15, 16, 17)]
    (found,) = json.loads(done.stdout)
    assert (found["seconds"]["measured"], found["seconds"]["origin"]) == (False, 2**17)
    ladder.clear()
    done = pick(tmp_path, "softmax", "--length", "4194304", "--decode")
    assert ladder == [("softmax", "decode", 2**k) for k in (16, 17)]
    assert done.exit_code == 1
    assert "its time at 4,194,304 cannot be told from those up to 131,072" in done.stdout


def test_a_system_that_fails_does_not_keep_the_others(recorded, monkeypatch):
    class Broken:
        def __init__(self, *journal, **options):
            pass

        def measure(self, settings, **ask):
            raise RuntimeError("it does not run\nat all")

    monkeypatch.setattr(survey, "Cost", Broken)
    done = pick(recorded, "softmax", "aaren", "--length", "4096", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(each["system"], each["rank"]) for each in found] == [("softmax", 1), ("aaren", None)]
    assert found[1]["reason"] == "failed: it does not run"


def test_a_comparison_in_the_folder_gives_quality_and_names(tmp_path):
    folder = write_sample(tmp_path / "compare")
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    here = {"machine": machine_of("cpu"), "versions": versions()}
    (folder / "results.jsonl").write_text("".join(json.dumps(line | here) + "\n" for line in lines))
    done = pick(tmp_path, "--length", "4096", "--causal", "--no-measure", "--json")
    assert done.exit_code == 0, done.output
    found = {each["system"]: each for each in json.loads(done.stdout)}
    layout = found["linear-attention+sliding-window"]
    assert layout["rank"] is not None
    assert layout["quality"]["recall"]["value"] == pytest.approx(0.81, abs=0.05)
    assert found["softmax"]["seconds"]["measured"]
    assert found["aaren"]["reason"].startswith("beaten by base-conv")
    assert f"quality in {folder}" in done.stderr


def test_figures_of_another_machine_do_not_count(tmp_path):
    write_sample(tmp_path / "compare")
    done = pick(tmp_path, "softmax", "--length", "4096", "--no-measure")
    assert done.exit_code == 1
    assert "its time at 4,096 is not on file" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["softmaxx"], "softmax"),
        (["ccnet"], "pick ranks sequence mixers"),
        (["based-lik"], "the nearest are based-like"),
        (["moh@tops=4"], "tops"),
        (["moh@top"], "an option is key=value"),
        (["softmax+ccnet"], "'softmax+ccnet' is of kind grid and sequence"),
        (["nowhere:Layer"], "no class is found at 'nowhere:Layer'"),
        (["--memory", "much"], "memory is 'much'"),
        (["--dim", "64"], "give both or neither"),
        (["--decode", "--train"], "ask twice"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, says):
    done = pick(tmp_path, *arguments)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert "Traceback" not in done.stderr
