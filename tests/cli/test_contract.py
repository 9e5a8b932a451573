"""`regardant contract` and `regardant check`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regardant.atlas import record, source
from regardant.cli import contract as command
from regardant.cli.main import app

LAYER = """
import torch
from torch import nn

class Mean(nn.Module):
    causal = True
    last = {last}

    def __init__(self, dim):
        super().__init__()
        self.mix = nn.Linear(dim, dim)

    def forward(self, x):
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.mix(x.cumsum(1) / count + self.last * x[:, -1:])
"""


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_contract_prints_a_line_a_property():
    result = run("contract", "eca-net", "--examples", "3")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("eca-net (gate) keeps its contract: ")
    assert [line.split()[0] for line in lines[1:]] == ["passed"] * (len(lines) - 1)
    assert "\x1b" not in result.stdout


def test_contract_gives_json_for_scripts():
    result = run("contract", "eca-net", "--examples", "2", "--json")
    (report,) = json.loads(result.stdout)
    assert (report["name"], report["kind"], report["passed"]) == ("eca-net", "gate", True)
    assert {entry["status"] for entry in report["properties"]} == {"passed"}


def test_contract_puts_the_verdict_on_file(monkeypatch):
    filed = []
    monkeypatch.setattr(record, "record_contract", lambda *what: filed.append(what))
    run("contract", "eca-net", "--examples", "2", "--record")
    ((slug, system, verdict),) = filed
    assert (slug, system, verdict["passed"]) == ("eca-net", "eca-net", True)
    assert verdict["fingerprint"] == source.fingerprint("regardant.gate.eca_net")
    assert verdict["properties"]["shape"].startswith("passed: the shape stays")
    assert set(verdict["versions"]) == {"python", "torch"}
    assert verdict["examples"] == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("contract", "sofmax"), "no system is called 'sofmax'; the nearest are softmax"),
        (("contract", "softmax", "--kind", "gate"), "give one or the other"),
        (("contract", "--kind", "fusion"), "kind is 'fusion', but contract suites exist for"),
        (("check", "nowhere:Layer"), "importing nowhere failed"),
        (("check", "json:Layer"), "json has no Layer"),
        (("check", "json"), "it is written module:Attribute"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words, sentence):
    result = run(*words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("last", "code"), [("0.0", 0), ("0.1", 1)])
def test_check_finds_a_layer_in_the_current_folder(tmp_path: Path, last: str, code: int):
    (tmp_path / "mine.py").write_text(LAYER.format(last=last))
    result = subprocess.run(
        [sys.executable, "-m", "regardant", "check", "mine:Mean", "--dim", "8", "--examples", "3"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    assert ("future leak: changing token 1 moved the output at position 0" in result.stdout) == bool(code)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["mine.py"], ["__pycache__", "mine.py"])


def test_check_gives_json_and_takes_a_kind():
    result = run(
        "check", "tests.contract.foreign:SqueezeExcite", "--kind", "gate", "--examples", "2", "--json"
    )
    report = json.loads(result.stdout)
    assert (result.exit_code, report["kind"], report["passed"]) == (0, "gate", True)


def test_the_command_says_how_many_keep_their_contract(monkeypatch):
    assert command.contract.__doc__.startswith("Run the contract suites.")
    result = run("contract", "eca-net", "eca-net", "--examples", "2")
    assert result.stdout.splitlines()[-1] == "2 of 2 systems keep their contract"
