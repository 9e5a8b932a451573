"""The GPU's targets, tried out on a CPU with short sequences: what each measures, and what it leaves out."""

import pytest
import torch

from bench.gpu import WIDTH, Bench
from bench.limits import Limits

PEAKS = Limits(multiply=1e12, multiply_bfloat16=1e12, copy=1e12, read=1e12, exponential=1e12, call=1e-6)


@pytest.fixture
def bench(monkeypatch):
    # One repetition each: this asks what is measured, not how fast it is.
    monkeypatch.setattr("bench.gpu.clock", lambda calls, **_: _once(calls))
    return Bench(torch.device("cpu"), shrink=512)


def _once(calls):
    from regardant.compare.clock import clock

    return clock(calls, budget=0, least=1)


def test_every_target_has_a_name_and_what_cannot_run_says_why(bench):
    targets = bench.targets()
    assert {target.name.split()[0] for target in targets} == {f"G{n}" for n in (1, 2, 3, 4, 5, 6, 7, 11)}
    left_out = {target.name: target.missing for target in targets if target.missing}
    assert "graphs are captured on CUDA, not on cpu" in left_out.values()


def test_shares_divide_what_must_move_by_the_time_it_took(bench):
    for target in bench.targets():
        if "share of the memory's rate" in target.name and target.name.startswith(("G1 ", "G2 ")):
            value, found = target.measure(PEAKS)
            bytes_each = 28 if "backward" in target.name else 8
            tokens = 4 * 16 * max(4096 // 512, 16)
            assert value * 1e12 * found["ours"].median == pytest.approx(bytes_each * WIDTH * tokens)


def test_softmax_is_held_against_every_fused_backend_that_runs(bench):
    assert "flash_attention" in dict(bench.backends())
    value, found = bench.softmax(PEAKS)
    assert value == min(t.median for name, t in found.items() if name != "ours") / found["ours"].median


@pytest.mark.parametrize("name", ["cache_share", "state_share", "linear_rate", "host"])
def test_the_others_run_and_give_a_positive_figure(bench, name):
    value, found = getattr(bench, name)(PEAKS)
    assert value > 0 and all(timing.best > 0 for timing in found.values())
