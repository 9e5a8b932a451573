import json
from dataclasses import asdict

import pytest

from regardant.compare import cost as module
from regardant.compare.cost import Cost
from regardant.compare.cost_table import tables
from regardant.compare.journal import Journal
from regardant.compare.measurement import Measurement, growth
from regardant.compare.workload import Setting


def setting(name):
    return Setting(f"small_layers:{name}", dim=8, heads=1)


def measure(path, *names, **ask):
    said = []
    cost = Cost(Journal(path), budget=0, progress=lambda *what: said.append(what))
    ask = dict(lengths=(128, 256), positions=(2, 6), memory=False) | ask
    return cost.measure([setting(name) for name in names], **ask), said


def test_every_figure_has_what_it_means_beside_it(tmp_path):
    found, said = measure(tmp_path / "cost.jsonl", "Small", memory=True, phases=("forward",))
    assert [(each.quantity, each.length) for each in found] == [
        ("bytes", 128), ("bytes", 256), ("seconds", 128), ("seconds", 256),
    ]  # fmt: skip
    assert all(each.bytes is not None for each in found[:2])
    assert all(0 < each.best <= each.seconds and each.repetitions >= 3 for each in found[2:])
    assert all(each.machine and each.code and each.date and "torch" in each.versions for each in found)
    assert said[0][:2] == (0, 4)
    assert said[-1][:2] == (4, 4)


def test_the_journal_holds_the_figures(tmp_path):
    path = tmp_path / "cost.jsonl"
    found, _ = measure(path, "Small")
    assert sorted(map(json.dumps, Journal(path))) == sorted(json.dumps(asdict(each)) for each in found)


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    path = tmp_path / "cost.jsonl"
    first, _ = measure(path, "Small")
    written = path.read_bytes()
    monkeypatch.setattr(module, "Workload", None)
    again, _ = measure(path, "Small")
    assert again == first
    assert path.read_bytes() == written


def test_only_what_is_missing_is_measured(tmp_path):
    path = tmp_path / "cost.jsonl"
    measure(path, "Small", lengths=(128,))
    first = path.read_text()
    found, said = measure(path, "Small", lengths=(128, 256))
    assert path.read_text().startswith(first)
    assert path.read_text().count("\n") == len(found) == 4
    assert said[0][:2] == (2, 4)


def test_other_weights_or_shapes_are_other_figures(tmp_path):
    one = Measurement.blank(setting("Small"), "forward", "seconds", 8)
    for other in (
        Setting("small_layers:Small", dim=8, heads=1, seed=1),
        Setting("small_layers:Small", dim=16),
    ):
        assert Measurement.blank(other, "forward", "seconds", 8).identity != one.identity
    assert Measurement(**json.loads(json.dumps(asdict(one)))).identity == one.identity


def test_decoding_has_seconds_and_the_state(tmp_path):
    found, _ = measure(tmp_path / "cost.jsonl", "Steps", phases=("decode",))
    assert [(each.length, each.bytes) for each in found] == [(2, 2 * 8 * 4), (6, 6 * 8 * 4)]
    assert all(each.best > 0 for each in found)


def test_a_run_that_would_take_too_long_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_once", lambda call, workload: 1.0)
    found, _ = measure(tmp_path / "cost.jsonl", "Small", lengths=(64, 96, 192, 384), phases=("forward",))
    assert [each.left_out for each in found] == [None, None, "a run might take 4 s", "a run might take 4 s"]
    assert len(list(Journal(tmp_path / "cost.jsonl"))) == 2


def test_a_run_that_takes_too_much_memory_is_left_out(tmp_path):
    found, _ = measure(tmp_path / "cost.jsonl", "Greedy", lengths=(64, 128), phases=("forward",), memory=True)
    assert [each.left_out is None for each in found] == [True, False, True, False]
    assert "memory" in found[1].left_out


def test_a_quadratic_layer_is_found_out(tmp_path):
    found, _ = measure(
        tmp_path / "cost.jsonl", "Square", lengths=(1024, 2048, 4096), phases=("forward",), memory=True
    )
    assert growth(found, phase="forward", quantity="bytes").exponent == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ({"phases": ("sideways",)}, "sideways"),
        ({"phases": ()}, "phases is empty"),
        ({"lengths": ()}, "lengths is empty"),
        ({"lengths": (0, 4)}, "the shortest is 1"),
        ({"positions": (0,)}, "positions"),
    ],
)
def test_bad_questions_are_told(tmp_path, ask, says):
    with pytest.raises(ValueError, match=says):
        measure(tmp_path / "cost.jsonl", "Small", **ask)


def figure(name, length, seconds, phase="forward"):
    blank = Measurement.blank(Setting(name), phase, "seconds", length)
    return Measurement(
        **asdict(blank) | dict(seconds=seconds, best=seconds, repetitions=3, bytes=64 * length)
    )


def test_tables_tell_growth_and_where_softmax_is_overtaken():
    found = [figure("softmax", n, n**2 * 1e-9) for n in (100, 1000, 10000)]
    found += [figure("sliding-window", n, n * 5e-7) for n in (100, 1000, 10000)]
    found += [figure("aaren", n, 1e-4, "decode") for n in (100, 10000)]
    runs, decoding = tables(found)
    assert runs.columns == ("system", "100", "1,000", "10,000", "time ~ n^", "at the end", "faster from")
    assert runs.rows[0] == ("softmax", "0.01", "1", "100", "2.00 ± 0.00", "2.00", "-")
    assert runs.rows[1] == ("sliding-window", "0.05", "0.5", "5", "1.00 ± 0.00", "1.00", "1,000")
    assert decoding.rows == (("aaren", "100", "100", "1.00", "640.0", "100.00"),)
    assert "| sliding-window | 0.05 | 0.5 | 5 | 1.00 ± 0.00 | 1.00 | 1,000 |" in runs.markdown()


def test_what_was_left_out_is_said_below_the_table():
    long = Measurement(
        **asdict(figure("softmax", 10**6, None)) | dict(best=None, left_out="a run might take 9 s")
    )
    (runs,) = tables([figure("softmax", 100, 1e-3), figure("softmax", 1000, 1e-1), long])
    assert runs.rows[0][3:5] == ("left out", "2.00")
    assert runs.notes == ("left out: softmax at 1,000,000, a run might take 9 s.",)
