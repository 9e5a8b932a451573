import sys

import pytest

from regardant.compare.peak import OutOfMemory, PeakMeter
from regardant.compare.workload import Setting

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def meter():
    with PeakMeter() as meter:
        yield meter


def measure(meter, name, phase="forward", length=256):
    return meter.measure(Setting(f"small_layers:{name}", dim=8, heads=1), phase, length, threads=1)


def test_what_is_held_at_once_is_seen(meter):
    assert measure(meter, "Together") == pytest.approx(64 * MEGABYTE, rel=0.15)


def test_what_was_freed_before_does_not_count(meter):
    assert measure(meter, "InTurn") == pytest.approx(64 * MEGABYTE, rel=0.15)


def test_every_measurement_begins_anew(meter):
    first = measure(meter, "Together")
    assert measure(meter, "Small") < 2 * MEGABYTE
    assert measure(meter, "Together") == pytest.approx(first, rel=0.05)


def test_a_matrix_of_pairs_is_seen_to_grow(meter):
    sizes = [measure(meter, "Square", length=n) for n in (2048, 4096)]
    assert sizes == pytest.approx([16 * MEGABYTE, 64 * MEGABYTE], rel=0.15)


def test_the_backward_counts(meter):
    assert measure(meter, "Together", "backward") == pytest.approx(64 * MEGABYTE, rel=0.15)


def test_too_much_is_an_answer_and_the_meter_lives_on(meter):
    with pytest.raises(OutOfMemory):
        measure(meter, "Greedy")
    assert measure(meter, "Small") < 2 * MEGABYTE


def test_a_run_that_fails_is_said_to(meter):
    with pytest.raises(RuntimeError, match="Missing forward at 8 failed"):
        meter.measure(Setting("small_layers:Missing", dim=8, heads=1), "forward", 8, threads=1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is reset only on Linux")
def test_the_peak_of_this_process_follows_a_reset():
    import torch

    from regardant.compare.peak import peak, reset_peak

    before = reset_peak()
    held = torch.ones(16 * MEGABYTE)
    assert peak() - before >= 0.9 * held.nbytes
    del held
    assert reset_peak() <= peak() < before + 32 * MEGABYTE
