"""The command around a comparison: how it is asked, what it prints and writes, how bad input is told."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from regardant.cli import compare as module
from regardant.cli.main import app
from tests.compare.brief import brief
from tests.compare.here import Here
from tests.compare.sample_findings import write_sample

SMALL = [
    "--tasks",
    "recall",
    "--lengths",
    "64,128",
    "--dim",
    "8",
    "--heads",
    "1",
    "--layers",
    "1",
    "--seeds",
    "2",
]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    brief(monkeypatch.setattr, monkeypatch.setitem)
    monkeypatch.setattr(module, "_engine", lambda name, folder: Here)
    monkeypatch.setattr("regardant.compare.bench.cores", lambda: 1)

    def measure(meter, setting, phase, length, *, threads):
        return 2**21 + 100 * length

    monkeypatch.setattr("regardant.compare.peak.PeakMeter.measure", measure)


def compare(*arguments):
    return CliRunner().invoke(app, ["compare", *arguments])


def test_it_prints_a_table_and_says_where_the_report_lies(tmp_path):
    done = compare("base-conv", *SMALL, "--budget", "15m", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    head, *rows = (line for line in done.stdout.splitlines()[2:] if line)
    for column in (
        "forward at 128, ms",
        "faster from",
        "MB at 128",
        "a token behind 1,000, µs",
        "recall, accuracy ↑",
    ):
        assert column in head
    assert [row.split()[0] for row in rows[:2]] == ["softmax", "base-conv"]
    assert "±" in rows[0]
    assert "recall: 16 keys with values in 64 tokens over 72 symbols" in done.stdout
    assert f"report: {tmp_path / 'report.html'}" in done.stderr
    assert (
        (tmp_path / "report.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    )
    written = (tmp_path / "report.html").stat().st_mtime_ns

    again = compare("base-conv", *SMALL, "--budget", "15m", "--out", str(tmp_path), "--json")
    found = json.loads(again.stdout)
    assert len(found["runs"]) == 4 and len(found["costs"]) == 12
    assert (tmp_path / "report.html").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["softmaxx"], "no system is called 'softmaxx'; the nearest are softmax"),
        (["--tasks", "recal"], "no task is called 'recal'"),
        (["--tasks", ","], "tasks is ','"),
        (["--lengths", "1k"], "lengths is '1k'"),
        (["--budget", "soon"], "budget is 'soon'"),
        (["--engine", "steam"], "no engine is called 'steam'"),
        (["--kind", "lens"], "no kind that can be compared is called 'lens'"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(tmp_path, arguments, says):
    done = compare(*arguments, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("regardant: ") and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_plotly_the_table_is_printed_and_a_sentence_says_how_to_get_the_report(tmp_path, monkeypatch):
    ask = ["base-conv", *SMALL, "--budget", "15m", "--out", str(tmp_path)]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "plotly.offline", None)
        done = compare(*ask)
    assert done.exit_code == 0, done.output
    assert "recall, accuracy ↑" in done.stdout
    said = done.stderr.splitlines()[-1]
    assert said == (
        "report: the report needs plotly, which is not installed: pip install 'regardant[report]', "
        "then run the same command again"
    )
    written = (tmp_path / "results.jsonl").read_bytes()
    assert len(written.splitlines()) == 16
    again = compare(*ask)
    assert again.stderr.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    assert (tmp_path / "results.jsonl").read_bytes() == written


def test_out_must_be_a_folder(tmp_path):
    (tmp_path / "out").write_text("")
    done = compare("--out", str(tmp_path / "out"))
    assert done.exit_code == 2 and "must be a folder" in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("4m", 240), ("2h", 7200), ("30", 30), ("1.5m", 90)]
)
def test_a_budget_is_a_number_with_its_unit(text, seconds):
    assert module._seconds(text) == seconds


def test_no_torch_is_imported_where_everything_is_known(tmp_path):
    folder = write_sample(tmp_path)
    code = (
        "import sys; from pathlib import Path; from regardant.compare import comparison, summary; "
        "from regardant.compare.findings import Findings; from regardant.cli import compare; "
        f"summary.summary(Findings.read(Path({str(folder)!r}))); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
