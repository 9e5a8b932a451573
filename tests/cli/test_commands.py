"""The commands as a user runs them: output, exit codes, no torch, no traceback."""

import json
import re

import pytest

import regardant
from regardant.atlas.catalog import PACKAGE, variants
from regardant.cli.cost import DEFAULT
from tests.cli.command import copy_of_the_package, run

CARDS = 214 + len(list((PACKAGE / "atlas" / "baselines").glob("*.toml")))
"""The papers, and the yardsticks beside them."""


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("list", "--json"),
        ("show", "moh"),
        ("search", "linear attention"),
        ("status",),
        ("--help",),
        ("--version",),
    ],
    ids=" ".join,
)
def test_what_only_reads_cards_imports_no_torch_and_prints_plain_text(arguments) -> None:
    done = run(*arguments, options=("-X", "importtime"))
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "regardant.cli.main" in imported
    heavy = {"torch", "numpy", "jaxtyping", "hypothesis", "rich", "sklearn"}
    assert {name for name in imported if name.split(".")[0] in heavy} == set()
    assert "\x1b" not in done.stdout
    assert done.stdout.strip()


def test_list_json_has_every_paper_and_baseline() -> None:
    found = json.loads(run("list", "--json").stdout)
    assert len(found) == CARDS
    assert sum(entry["kind"] != "baseline" for entry in found) == 214
    for entry in found:
        assert set(entry) == {"slug", "title", "arxiv", "year", "kind", "status", "fidelity", "systems"}
        assert entry["status"] in ("card", "built", "checked")
        assert entry["fidelity"] in ("official", "paper", "reading")
        assert isinstance(entry["systems"], list) and isinstance(entry["year"], int)
    systems = {entry["slug"]: entry["systems"] for entry in found}
    assert systems["quantizable-transformers"] == ["clipped-softmax", "gated-attention"]
    made = {name for names in systems.values() for name in names}
    assert made | set(variants()) == set(regardant.names())


def test_list_is_one_full_line_a_card_when_piped() -> None:
    lines = run("list").stdout.splitlines()
    assert len(lines) == CARDS + 1
    assert lines[0].split() == ["slug", "year", "kind", "status", "fidelity", "systems", "title"]
    titles = {entry["title"] for entry in json.loads(run("list", "--json").stdout)}
    assert {title for title in titles if not any(line.endswith(title) for line in lines)} == set()
    assert max(map(len, lines)) > 150


def test_list_by_kind_and_status() -> None:
    kinds = {entry["kind"] for entry in json.loads(run("list", "--json", "--kind", "vision").stdout)}
    assert kinds == {"vision"}
    grids = json.loads(run("list", "--json", "--kind", "grid").stdout)
    assert {name for entry in grids for name in entry["systems"]} >= set(regardant.names("grid"))
    parts = [
        json.loads(run("list", "--json", "--status", state).stdout) for state in ("card", "built", "checked")
    ]
    assert sum(map(len, parts)) == CARDS
    assert {entry["status"] for entry in parts[0]} == {"card"}


def test_status_counts_every_card_once() -> None:
    counts = json.loads(run("status", "--json").stdout)
    assert sum(counts["total"].values()) == CARDS
    assert sum(counts["kinds"]["vision"].values()) == 32
    total = run("status").stdout.splitlines()[-1].split()
    states = (str(counts["total"][state]) for state in ("card", "built", "checked"))
    assert total == ["total", *states, str(CARDS)]


def test_show_tells_what_there_is() -> None:
    about = json.loads(run("show", "moh", "--json").stdout)
    assert about["slug"] == "moh" and about["arxiv"] == "2410.11842" and about["code"] == "SkyworkAI/MoH"
    (system,) = about["systems"]
    assert system["target"] == "regardant.sequence.moh:MoH" and system["kind"] == "sequence"
    assert about["summary"] and about["claim"] and about["status"]
    text = run("show", "moh").stdout
    assert about["summary"] in text and "https://arxiv.org/abs/2410.11842" in text


def test_show_reads_the_configuration_and_the_support_from_the_source() -> None:
    (system,) = json.loads(run("show", "softmax", "--json").stdout)["systems"]
    options = {option["name"]: option["default"] for option in system["config"]}
    assert options["dim"] is None and options["heads"] is None and options["causal"] == "False"
    assert system["supports"]["time"] == 2.0 and system["supports"]["causal"] is True
    by_system = json.loads(run("show", "clipped-softmax", "--json").stdout)
    assert by_system["slug"] == "quantizable-transformers"
    text = run("show", "softmax").stdout
    assert re.search(r"config +dim: int, must be given", text)
    assert re.search(r"config +causal: bool = False", text)
    assert re.search(r"grows as +time n\^2", text)


def test_search_ranks_and_limits() -> None:
    found = json.loads(run("search", "linear", "attention", "decay", "--json", "--limit", "5").stdout)
    assert len(found) == 5
    assert "lightning-attention-2" in [entry["slug"] for entry in found]
    assert [entry["score"] for entry in found] == sorted((entry["score"] for entry in found), reverse=True)


def test_search_that_finds_nothing_is_exit_code_1() -> None:
    done = run("search", "attentoin", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, [])
    assert "attention" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("show", "mohh"), "no card or system is called 'mohh'; the nearest are moh"),
        (("list", "--kind", "grids"), "no kind is called 'grids'; the kinds are sequence, grid"),
        (("list", "--status", "done"), "no status is called 'done'; the statuses are card, built, checked"),
        (("search", "!!"), "'!!' has no word to search for"),
        (("new", "Not A Slug"), "slug is 'Not A Slug'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("regardant: ") and sentence in done.stderr


def test_new_writes_beside_the_package_that_runs_it(tmp_path) -> None:
    copy_of_the_package(tmp_path)
    done = run("new", "my-paper", "--class", "Zoo", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    named = re.findall(r"regardant/\S+\.(?:py|toml)", done.stdout)
    assert named == [
        "regardant/atlas/cards/my-paper.toml",
        "regardant/sequence/my_paper.py",
        "regardant/claim/my_paper.py",
    ]
    assert all((tmp_path / name).is_file() for name in named)
    about = json.loads(run("show", "my-paper", "--json", folder=tmp_path).stdout)
    assert [system["target"] for system in about["systems"]] == ["regardant.sequence.my_paper:Zoo"]
    assert "dim" in [option["name"] for option in about["systems"][0]["config"]]
    assert about["lacks"] == ["the contract of my-paper has no verdict on file"]
    again = run("new", "my-paper", "--class", "Zoo", folder=tmp_path)
    assert again.returncode == 2 and "is there already; nothing was written" in again.stderr


def test_bad_usage_is_exit_code_2_and_the_version_is_one() -> None:
    for arguments in (("list", "--nonsense"), ("nonsense",), ("show",), ("search", "x", "--limit", "0")):
        done = run(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr
    assert run("--version").stdout == f"regardant {regardant.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", regardant.__version__)


def test_what_cost_measures_by_default_exists() -> None:
    assert set(DEFAULT) <= set(regardant.names())
