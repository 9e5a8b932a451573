"""Comparisons in processes that are killed: whatever dies, every result is there once, and whole."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regardant.compare.comparison import Comparison
from regardant.compare.engine import Processes
from regardant.compare.folder import Folder
from regardant.compare.planning import Asked
from tests.compare.brief import brief

pytestmark = pytest.mark.timeout(900)
"""They start a dozen processes with torch: on a busy machine that takes its time."""

ROOT = Path(__file__).parents[2]
ASKED = dict(
    names=("odd_layers:Mortal",), tasks=("recall",), lengths=(64,), dim=8, heads=1, layers=1, seeds=1,
    budget=900.0, device="cpu",
)  # fmt: skip
COMMAND = [
    *(sys.executable, "-m", "tests.compare.brief", "compare", "moh", "--tasks", "recall", "--lengths", "64"),
    *("--dim", "8", "--heads", "1", "--layers", "1", "--seeds", "2", "--budget", "15m", "--device", "cpu"),
]


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def mortal(tmp_path, monkeypatch):
    """`odd_layers:Mortal` dies once in this test, in whichever process."""
    brief(monkeypatch.setattr, monkeypatch.setitem)
    monkeypatch.setenv("LIFE", str(tmp_path / "life"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(ROOT)]))
    return tmp_path / "out"


def check_that_nothing_is_lost_or_there_twice(findings, folder):
    units = [line["unit"] for line in lines(folder)]
    assert len(units) == len(set(units)) == 2 * 4 + 2
    assert {run.system for run in findings.runs} == {"softmax", "odd_layers:Mortal"}
    assert (folder.parent / "life").stat().st_size > 10


def test_a_worker_that_is_killed_loses_nothing(mortal):
    folder = Folder(mortal)
    comparison = Comparison(Asked(**ASKED), folder, engine=lambda: Processes(folder.log, slots=1))
    check_that_nothing_is_lost_or_there_twice(comparison.run(), mortal)
    assert comparison.missing == 0


def test_the_same_over_ray_with_two_workers(mortal):
    ray = pytest.importorskip("ray")
    from regardant.compare.on_ray import OnRay

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        engine = OnRay()
        assert (engine.slots, engine.alone) == (2, 1)
        comparison = Comparison(Asked(**ASKED), Folder(mortal), engine=lambda: engine, same_machine=False)
        check_that_nothing_is_lost_or_there_twice(comparison.run(), mortal)
        assert comparison.missing == 0
    finally:
        ray.shutdown()


def test_kill_nine_at_three_moments_and_go_on(tmp_path):
    draw, out = random.Random(11), tmp_path / "out"
    command = [*COMMAND, "--out", str(out), "--json"]
    for _ in range(3):
        before = len(lines(out)) if (out / "results.jsonl").exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        # At a moment that depends on what was written, not on how fast this machine is.
        wanted = before + draw.randint(1, 3)
        while process.poll() is None and not (
            (out / "results.jsonl").exists() and (out / "results.jsonl").read_text().count("\n") >= wanted
        ):
            time.sleep(draw.uniform(0.005, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
    plan = json.loads((out / "plan.json").read_text())
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "missing" not in done.stderr
    found = [line["unit"] for line in lines(out)]
    assert len(found) == len(set(found)) == 2 * (2 + 2) + 2 * 2
    assert json.loads((out / "plan.json").read_text()) == plan
    assert len(json.loads(done.stdout)["runs"]) == 4
