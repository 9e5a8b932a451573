import importlib
import sys

import pytest

from bench import peers
from bench.peers import Pair
from bench.peers_official import reading
from bench.quiet import Quiet
from bench.results_file import Results


def row(ratio, best, *, does_less=False, does_more=False, quiet=1.0):
    phase = {"ours": {}, "theirs": {}, "ratio": ratio, "ratio_of_best": best}
    return {
        "pair": "a / b",
        "length": 512,
        "does_less": does_less,
        "does_more": does_more,
        "quiet": quiet,
        "forward": phase,
        "code": "1",
    }


def test_rows_are_kept_and_code_that_changed_makes_them_missing(tmp_path):
    Results("peers", folder=tmp_path).put("one", row(1.0, 1.0))
    again = Results("peers", folder=tmp_path)
    assert again.rows == {"one": row(1.0, 1.0)}
    assert again.has("one", "1")
    assert not again.has("one", "2")
    assert not again.has("two", "1")
    again.put("busy", row(1.0, 1.0) | {"quiet": 0.5})
    assert not again.has("busy", "1")
    assert Results("peers", folder=tmp_path, fresh=True).rows == {}


@pytest.mark.parametrize(
    ("its", "told"),
    [
        (row(0.9, 0.9), True),
        (row(0.985, 0.985), False),
        (row(1.2, 0.9), False),
        (row(0.5, 0.5, does_less=True), False),
        (row(0.5, 0.5, does_more=True), False),
        (row(0.5, 0.5, quiet=0.6), False),
    ],
)
def test_behind_is_where_median_and_best_are(tmp_path, its, told):
    results = Results("peers", folder=tmp_path)
    results.put("a / b at 512", its)
    assert bool(peers.behind(results)) is told
    assert ("Behind: nowhere." in peers.table(results)) is not told
    assert f"{its['forward']['ratio']:.2f} |" in peers.table(results)
    assert ("~ " in peers.table(results).splitlines()[8]) is (its["quiet"] < 0.85)


def test_what_is_on_file_is_not_measured_again(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(peers, "code", lambda system: "1")
    monkeypatch.setattr(peers, "compare", lambda length: compared.append(length) or {})
    monkeypatch.setattr(peers, "describe", lambda name, row: name)
    monkeypatch.setattr(Quiet, "watch", lambda self, measure: (measure(), 1.0))
    results, pair = Results("peers", folder=tmp_path), Pair("a / b", "softmax", lambda length: length)
    assert peers.measure(results, [pair], [512, 128], seconds=60)
    assert compared == [128, 512]
    assert peers.measure(Results("peers", folder=tmp_path), [pair], [512, 128, 256], seconds=60)
    assert compared == [128, 512, 256]
    assert not peers.measure(results, [pair], [64], seconds=-1)


def test_names_are_unique():
    names = [pair.name for pair in peers.pairs()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("softmax / x-transformers", "x_transformers"),
        ("sliding-window 256 / local-attention", "local_attention"),
        ("sliding-window 256, not causal / local-attention", "local_attention"),
        ("axial-transformer / axial-attention", "axial_attention"),
        ("performer, not causal / performer-pytorch", "performer_pytorch"),
    ],
)
def test_same_weights_give_the_same_outputs(name, package):
    pytest.importorskip(package)
    pair = next(pair for pair in peers.pairs() if pair.name == name)
    found = pair.contest(1024).differences()
    assert max(found.values()) < 1e-5


def test_a_memory_learns_as_the_peers_does():
    pytest.importorskip("titans_pytorch")
    pair = next(pair for pair in peers.pairs() if pair.name == "titans / titans-pytorch")
    assert max(pair.contest(64).differences().values()) < 1e-5


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("gated-attention / x-transformers", "x_transformers"),
        ("routing-transformer / routing-transformer", "routing_transformer"),
        ("flowformer, not causal / linear-attention-transformer", "linear_attention_transformer"),
    ],
)
def test_other_mathematics_runs_on_the_same_shapes(name, package):
    pytest.importorskip(package)
    contest = next(pair for pair in peers.pairs() if pair.name == name).contest(256)
    ours, theirs = contest.ours(*contest.inputs), contest.theirs(*contest.inputs)
    assert ours.shape == theirs.shape
    for output in (ours, theirs):
        assert output.isfinite().all() and output.std() > 0


def test_rows_of_checkouts_are_skipped_with_the_reason(tmp_path, monkeypatch, capsys):
    def measured(length):
        raise AssertionError("this needs a checkout")

    results, pair = Results("peers", folder=tmp_path), Pair("a / b", "softmax", measured, checkout="theirs")
    monkeypatch.delenv("REGARDANT_OFFICIAL", raising=False)
    assert peers.measure(results, [pair], [512], seconds=9)
    assert "a / b is skipped: REGARDANT_OFFICIAL names no folder" in capsys.readouterr().out
    monkeypatch.setenv("REGARDANT_OFFICIAL", str(tmp_path))
    assert peers.measure(results, [pair], [512], seconds=9)
    assert "holds no theirs" in capsys.readouterr().out
    (tmp_path / "theirs").mkdir()
    too_long = Pair("a / b", "softmax", measured, checkout="theirs", longest=256)
    assert peers.measure(results, [too_long], [512], seconds=9)
    assert results.rows == {}


def test_a_checkout_is_imported_from_and_left_behind(tmp_path, monkeypatch):
    package = tmp_path / "theirs" / "models"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "layer.py").write_text("import absent_tokeniser\nprint('loud')\nVALUE = 3\n")
    monkeypatch.setenv("REGARDANT_OFFICIAL", str(tmp_path))
    before = (list(sys.path), set(sys.modules))
    with reading("theirs", without=("absent_tokeniser",)):
        assert importlib.import_module("models.layer").VALUE == 3
    assert (list(sys.path), set(sys.modules)) == before
