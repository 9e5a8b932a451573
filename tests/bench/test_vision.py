import sys
from time import sleep
from types import ModuleType

import pytest
import torch
from torch import nn

from bench import vision, vision_official
from bench.contest import Contest
from bench.quiet import Quiet
from bench.results_file import Results
from bench.vision_layers import LAYERS
from bench.vision_match import Match, tokens


def row(ratio, *, match="a / b", phase="forward", quiet=1.0, shape="1 × 3", **more):
    seconds = {"ours": 0.01, "theirs": 0.01 * ratio, "least": ratio, "most": ratio, "rounds": 6, "won": 6}
    seconds["products"] = 0.5
    return {
        "match": match,
        "shape": shape,
        "phase": phase,
        "ratio": ratio,
        "quiet": quiet,
        **seconds,
        **more,
    }


def test_a_round_times_both_and_who_goes_first_alternates():
    called = []

    def told(name):
        return lambda x: called.append(name) or x

    contest = Contest(told("ours"), told("theirs"), (torch.ones(1, 2),))
    rounds = contest.rounds("forward", seconds=0, least=4, turn=0)
    assert called[4:] == ["ours", "theirs", "theirs", "ours"] * 2
    assert len(rounds) == 4
    assert min(min(each) for each in rounds) > 0


def test_a_turn_of_short_calls_holds_many_and_counts_one():
    called = []

    def nap(name, seconds):
        return lambda x: sleep(seconds) or called.append(name) or x

    contest = Contest(nap("ours", 0.03), nap("theirs", 0.001), (torch.ones(1, 2),))
    rounds = contest.rounds("forward", seconds=0, least=3, turn=0.02)
    assert called.count("ours") == 2 + 3
    assert called.count("theirs") > 2 + 3 * 2
    assert all(ours >= 0.03 and 0.001 <= theirs < 0.02 for ours, theirs in rounds)


def test_the_table_has_medians_and_tells_where_we_are_behind(tmp_path):
    results = Results("vision", folder=tmp_path)
    results.put("one", row(1.5, difference=2e-6))
    results.put("two", row(0.9, phase="backward", won=0))
    results.put("three", row(1.1, shape="4 × 3"))
    results.put("five", row(0.99, shape="4 × 3", phase="backward", won=1))
    results.put("four", row(0.2, shape="8 × 3", quiet=0.5))
    told = vision.table(results)
    assert "| a / b | 1 × 3 | 10.0 | 1.50 | 2.00 | 10.0 | 0.90 | 2.00 | 2e-06 |" in told
    assert "| a / b | 8 × 3 | 10.0 | ~ 0.20 | 2.00 |  |  |  |  |" in told
    assert "- whole networks, forward: 1.30 (target 1.3; 2 rows)\n" in told
    assert told.endswith(
        "Behind:\n- a / b, backward of 1 × 3: 0.900, 0 of 6 rounds won\n\n"
        "Below 1, but no more often than chance may say:\n"
        "- a / b, backward of 4 × 3: 0.990, 1 of 6 rounds won\n"
    )


def test_whole_networks_and_layers_have_tables_and_medians_of_their_own(tmp_path):
    results = Results("vision", folder=tmp_path)
    for name, ratio in (("one", 1.0), ("two", 1.2), ("three", 1.4)):
        results.put(name, row(ratio, shape=name))
    results.put("four", row(2.0, match=LAYERS[0].name))
    results.put("five", row(3.0, match=LAYERS[1].name, phase="backward"))
    results.put("six", row(9.0, match=LAYERS[1].name, quiet=0.5))
    told = vision.table(results)
    networks, layers = told.split("## Whole networks\n")[1].split("## Layers by themselves\n")
    assert networks.count("| a / b |") == 3
    assert "| a / b |" not in layers
    assert f"| {LAYERS[0].name} | 1 × 3 | 10.0 | 2.00 |" in layers
    assert layers.split("## Medians\n")[1] == (
        "\n- whole networks, forward: 1.20 (target 1.3; 3 rows)\n"
        "- layers by themselves, forward: 2.00 (target 1.3; 1 row)\n"
        "- layers by themselves, forward and backward: 3.00 (target 1.3; 1 row)\n"
        "- all, forward: 1.30 (target 1.3; 4 rows)\n"
        "- all, forward and backward: 3.00 (target 1.3; 1 row)\n"
        "\nBehind: nowhere.\n\nBelow 1, but no more often than chance may say: nowhere.\n"
    )


def test_a_call_without_any_product_has_no_bound(tmp_path):
    results = Results("vision", folder=tmp_path)
    results.put("one", row(1.5) | {"products": 0.0})
    assert "| a / b | 1 × 3 | 10.0 | 1.50 |  |" in vision.table(results)


def test_what_is_on_file_is_not_measured_again_and_what_lacks_code_is_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vision, "made_of", lambda system: "1")
    monkeypatch.setattr(vision, "compare", lambda match, made, shape, phase: compared.append(phase) or {})
    monkeypatch.setattr(vision, "describe", lambda name, row: name)
    monkeypatch.setattr(Quiet, "watch", lambda self, measure: (measure(), 1.0))
    compared, match = [], Match("a / b", "davit", lambda: None, "theirs", ((1, 3, 8, 8),))
    monkeypatch.delenv("REGARDANT_OFFICIAL", raising=False)
    assert vision.measure(Results("vision", folder=tmp_path), [match], seconds=9)
    assert "a / b is skipped: REGARDANT_OFFICIAL names no folder" in capsys.readouterr().out
    monkeypatch.setenv("REGARDANT_OFFICIAL", str(tmp_path))
    for name in ("theirs", vision_official.TIMM):
        (tmp_path / name).mkdir()
    for _ in range(2):
        assert vision.measure(Results("vision", folder=tmp_path), [match], seconds=9)
    assert compared == ["forward", "backward"]
    assert not vision.measure(Results("vision", folder=tmp_path, fresh=True), [match], seconds=-1)


def test_outputs_are_compared_inside_the_border():
    def edged(x):
        y = x.clone()
        y[..., 0, :] += 1
        return y

    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    contest = Contest(edged, lambda x: x, (x,))
    assert vision.difference(contest, 1) == 0
    assert vision.difference(contest, 0) == pytest.approx(1 / x.abs().max().item())


def test_outputs_of_either_layout_are_compared_alike():
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    contest = Contest(lambda x: x + 1, lambda x: x + 1, (x,), their_inputs=(tokens(x),))
    assert vision.difference(contest, 0, tokens) == 0
    with pytest.raises(ValueError, match=r"outputs are \(2, 3, 5, 4\) and \(2, 15, 4\), not alike"):
        vision.difference(contest, 0)


def test_names_are_unique_and_every_system_is_ours():
    assert len({match.name for match in vision.MATCHES}) == len(vision.MATCHES)
    for match in vision.MATCHES:
        assert len(vision.made_of(match.system)) == 16


def test_a_file_is_read_with_modules_standing_in_and_nothing_is_left_behind(tmp_path, monkeypatch):
    layers = tmp_path / vision_official.TIMM / "timm" / "layers"
    layers.mkdir(parents=True)
    (layers / "__init__.py").write_text("from torchvision.ops.misc import Norm\nwidth = 3\n")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.py").write_text(
        "from timm.data import MEAN\nfrom timm.models.layers import width\n"
        "from timm.models.registry import register_model\nfrom absent.parts import scale\n"
        "@register_model\ndef make():\n    return width * scale\n"
    )
    monkeypatch.setenv("REGARDANT_OFFICIAL", str(tmp_path))
    before = dict(sys.modules)
    found = vision_official.official("theirs", "model.py", {"absent": {}, "absent.parts": {"scale": 2}})
    assert found.make() == 6
    assert sys.modules == before


def test_what_was_imported_already_comes_back(monkeypatch):
    real = ModuleType("timm")
    monkeypatch.setitem(sys.modules, "timm", real)
    with vision_official.standing_in({"timm": {}}):
        assert sys.modules["timm"] is not real
    assert sys.modules["timm"] is real


def test_unsettled_networks_have_no_idle_parameters():
    torch.manual_seed(0)
    network = vision_official.unsettled(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm2d(3)))
    state = network.state_dict()
    assert state["1.weight"].ne(1).all()
    assert state["1.running_mean"].ne(0).all()
    assert state["1.running_var"].ne(1).all()


def test_the_share_of_products_is_near_all_of_a_product_and_nothing_of_a_sum():
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    assert vision.share_of_products(lambda: x @ x) > 0.5
    assert vision.share_of_products(lambda: x + x) == 0
