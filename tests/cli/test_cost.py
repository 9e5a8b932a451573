import json

import pytest
from typer.testing import CliRunner

from regardant.cli.main import app

SMALL = [
    "--lengths",
    "32,64",
    "--positions",
    "2,4",
    "--dim",
    "8",
    "--heads",
    "2",
    "--budget",
    "0",
    "--no-memory",
]


def cost(*arguments):
    return CliRunner().invoke(app, ["cost", *arguments])


def test_it_measures_prints_and_leaves_the_figures(tmp_path):
    done = cost("softmax", *SMALL, "--out", str(tmp_path / "reports"))
    assert done.exit_code == 0, done.output
    assert "softmax" in done.stdout
    assert "decoding" in done.stdout
    assert str(tmp_path / "reports" / "cost.jsonl") in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "reports" / "cost.jsonl").read_text().splitlines()]
    assert {(line["phase"], line["length"]) for line in lines} == {
        ("forward", 32), ("forward", 64), ("backward", 32), ("backward", 64), ("decode", 2), ("decode", 4),
    }  # fmt: skip
    assert "| softmax |" in (tmp_path / "reports" / "cost.md").read_text(encoding="utf-8")


def test_json_is_a_list_of_figures_and_a_second_run_adds_nothing(tmp_path):
    ask = ("softmax", *SMALL, "--phases", "forward", "--out", str(tmp_path), "--json")
    first, written = cost(*ask), (tmp_path / "cost.jsonl").read_bytes()
    again = cost(*ask)
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert (tmp_path / "cost.jsonl").read_bytes() == written
    assert cost(*ask, "--fresh").exit_code == 0
    assert (tmp_path / "cost.jsonl").read_bytes() != written


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["softmaxx"], "softmax"),
        (["softmax", "--lengths", "1k"], "lengths is '1k'"),
        (["softmax", "--lengths", "0"], "the shortest is 1"),
        (["softmax", "--phases", "sideways"], "sideways"),
        (["softmax", "--device", "abacus"], "device is 'abacus'"),
        (["softmax", "--dtype", "float12"], "dtype is 'float12'"),
        (["softmax", "--dim", "10", "--heads", "4"], "heads"),
        (["softmax", "--kind", "grid"], "one or the other"),
        (["--kind", "gird"], "gird"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(tmp_path, arguments, says):
    done = cost(*arguments, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.startswith("regardant: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_type_that_the_device_lacks_is_one_sentence(tmp_path, monkeypatch):
    from regardant.core import checks

    monkeypatch.setattr(checks, "computes_in", lambda device, dtype: False)
    done = cost("softmax", "--dtype", "float16", "--out", str(tmp_path))
    assert done.exit_code == 2
    assert "float16" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_out_must_be_a_folder(tmp_path):
    (tmp_path / "out").write_text("")
    done = cost("softmax", "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "must be a folder" in done.stderr
