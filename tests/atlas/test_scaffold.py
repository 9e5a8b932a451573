"""`new`: three files that stand as they are, and nothing overwritten."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regardant.atlas import catalog, source
from regardant.atlas.scaffold import scaffold
from regardant.atlas.skeleton import SYSTEMS
from regardant.atlas.status import status
from regardant.contract import check
from tests.atlas.small_package import a_card, put_card

ROOT = Path(__file__).parents[2]
LONG = "A Paper with a Title so Long that No Line of a Hundred Characters Could Ever Hold It, However Tried"


def files(package: Path) -> set[str]:
    return {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"scaffolded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_known_card_gets_two_files_and_a_line(package) -> None:
    before = files(package)
    made = scaffold("bare", package=package)
    assert files(package) - before == {"sequence/bare.py", "claim/bare.py"}
    assert (made.target, made.new_card) == ("regardant.sequence.bare:Bare", False)
    card = catalog.card("bare", package=package)
    assert card == a_card("bare", kind="vision", provides={"bare": made.target})
    assert source.defines("regardant.sequence.bare", "Bare", package=package)
    assert status(card, package=package).reasons == ("the contract of bare has no verdict on file",)
    assert catalog.names("sequence", package=package) == ["bare", "moth", "yardstick"]


def test_a_new_paper_gets_all_three(package) -> None:
    before = files(package)
    made = scaffold("two-words", kind="gate", title="Two Words", arxiv="2301.01234", package=package)
    assert files(package) - before == {
        "atlas/cards/two-words.toml",
        "gate/two_words.py",
        "claim/two_words.py",
    }
    card = catalog.card("two-words", package=package)
    assert (card.title, card.arxiv, card.year, card.kind) == ("Two Words", "2301.01234", 2023, "gate")
    assert card.provides == {"two-words": "regardant.gate.two_words:TwoWords"}
    assert made.new_card


def test_the_class_may_be_named(package) -> None:
    assert scaffold("bare", kind="grid", name="Bear", package=package).target == "regardant.grid.bare:Bear"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"slug": "moth"}, r"moth\.py is there already"),
        ({"slug": "moth", "kind": "grid"}, "already provides 'moth' as regardant.sequence.moth:Moth"),
        ({"slug": "left"}, "the card 'twins' already provides 'left'"),
        ({"slug": "Bare"}, "slug is 'Bare'"),
        ({"slug": "../bare"}, r"slug is '\.\./bare'"),
        (
            {"slug": "bare", "kind": "edit"},
            "kind is 'edit', but there is a skeleton only for sequence, grid, gate, structure,",
        ),
        ({"slug": "bare", "name": "Not a name"}, "class is 'Not a name'"),
        ({"slug": "bare", "title": "Another"}, "title and arxiv are for a new card"),
    ],
)
def test_nothing_is_overwritten_and_bad_input_is_a_sentence(package, arguments, sentence: str) -> None:
    before = {name: (package / name).read_bytes() for name in files(package)}
    with pytest.raises(ValueError, match=sentence) as raised:
        scaffold(**arguments, package=package)
    assert "\n" not in str(raised.value)
    assert {name: (package / name).read_bytes() for name in files(package)} == before


def test_a_second_time_is_refused(package) -> None:
    scaffold("bare", package=package)
    with pytest.raises(ValueError, match="is there already; nothing was written"):
        scaffold("bare", package=package)


def test_a_failure_half_way_leaves_nothing_behind(package, monkeypatch) -> None:
    before = {name: (package / name).read_bytes() for name in files(package)}

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr("regardant.atlas.scaffold.os.replace", crash)
    with pytest.raises(OSError, match="disk full"):
        scaffold("bare", package=package)
    assert {name: (package / name).read_bytes() for name in files(package)} == before


def test_the_skeletons_are_in_the_house_style(tmp_path) -> None:
    for number, kind in enumerate(SYSTEMS):
        for title in ("Short", LONG, 'A "quoted" \\ title'):
            scaffold(
                f"{kind}-{len(title)}-{number}", kind=kind, title=title, arxiv="2301.01234", package=tmp_path
            )
    put_card(tmp_path, a_card("claimed", title=LONG, claim="It is 3% better than before, on average. " * 5))
    scaffold("claimed", package=tmp_path)
    for command in (("check",), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_the_experiment_says_that_it_is_not_written(tmp_path) -> None:
    made = scaffold("bare", package=tmp_path)
    with pytest.raises(ValueError, match="the experiment of 'bare' is not written yet"):
        load(made.claim).claim(None)


def test_the_sequence_skeleton_works(tmp_path) -> None:
    made = scaffold("bare", package=tmp_path)
    torch.manual_seed(0)
    layer = load(made.system).Bare(dim=12, heads=3, causal=True).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(y, layer.reference(x), rtol=0, atol=1e-9)
    state = layer.start(2)
    for at in range(7):
        y_t, state = layer.step(x[:, at], state)
        torch.testing.assert_close(y_t, y[:, at], rtol=0, atol=1e-9)


def test_the_grid_skeleton_works(tmp_path) -> None:
    made = scaffold("bare", kind="grid", package=tmp_path)
    torch.manual_seed(0)
    layer = load(made.system).Bare(dim=12, heads=3, size=3).double()
    x = torch.randn(2, 5, 6, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.reference(x), rtol=0, atol=1e-9)


def test_the_gate_skeleton_works(tmp_path) -> None:
    made = scaffold("bare", kind="gate", package=tmp_path)
    torch.manual_seed(0)
    layer = load(made.system).Bare(channels=6).double()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.reference(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["structure", "backbone", "task", "lens", "train", "parallel"])
def test_the_skeletons_that_bring_their_examples_keep_their_contract(tmp_path, kind: str) -> None:
    made = scaffold("bare", kind=kind, package=tmp_path)
    report = check(load(made.system).Bare, kind=kind, examples=4)
    assert report.passed, str(report)
