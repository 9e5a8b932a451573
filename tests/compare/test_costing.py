"""One cost of a comparison: what is left out by a guess, and a layout as the mean of its parts."""

import json

import pytest

from regardant.compare.costing import CostMeter, LeftOut, Shape
from regardant.compare.findings import Findings
from regardant.compare.peak import PeakMeter
from regardant.compare.planned import System
from tests.compare.sample_findings import write_sample

SHAPE = Shape(8, 2, "cpu", "sequence", repeat=0.0, longest=2.0)


def test_what_might_take_too_long_is_not_begun():
    softmax = System("softmax", "sequence", ("softmax",))
    with CostMeter() as meter, pytest.raises(LeftOut, match="might take more than 2 s"):
        meter.measure(softmax, SHAPE, "forward", 4096, before=(1024, 0.2))


def test_a_layout_is_the_mean_of_its_parts_and_its_peak_the_largest(monkeypatch):
    sizes = {"softmax": 3_000_000, "moh": 1_000_000}
    monkeypatch.setattr(
        PeakMeter, "measure", lambda meter, setting, phase, length, *, threads: sizes[setting.system]
    )
    layout = System("softmax+moh", "sequence", ("softmax", "moh"), ("softmax", "moh"))
    with CostMeter() as meter:
        assert meter.measure(layout, SHAPE, "forward", 64)["bytes"] == 3_000_000
        assert meter.measure(layout, SHAPE, "backward", 64)["bytes"] == 2_000_000
        state = meter.measure(layout, SHAPE, "decode", 10)["state_bytes"]
        parts = [
            meter.measure(System(n, "sequence", (n,)), SHAPE, "decode", 10)["state_bytes"] for n in sizes
        ]
    assert state == sum(parts) / 2


def test_far_better_than_the_baseline_is_too_good(tmp_path):
    folder = write_sample(tmp_path)
    assert Findings.read(folder).too_good("recall") == []
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for line in lines:
        if line["what"] == "quality" and line["system"] == "softmax" and line["task"] == "recall":
            line["found"]["value"] -= 0.3
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(Findings.read(folder).too_good("recall")) == {"moh", "linear-attention+sliding-window"}
