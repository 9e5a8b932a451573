from math import exp, log

import pytest

from regardant.compare.outlook import UNKNOWN_ERROR, outlook

QUADRATIC = {length: 1e-9 * length**2 for length in (1024, 2048, 4096, 8192)}


def test_what_was_measured_stands():
    found = outlook(QUADRATIC, 4096)
    assert (found.value, found.low, found.high, found.measured) == (QUADRATIC[4096],) * 3 + (True,)
    assert str(found) == "measured"


def test_a_power_law_is_continued_exactly():
    found = outlook(QUADRATIC, 32768)
    assert found.value == pytest.approx(1e-9 * 32768**2, rel=1e-9)
    assert found.low == pytest.approx(found.high, rel=1e-6)
    assert (found.origin, found.exponent) == (8192, pytest.approx(2.0))
    assert str(found) == "extrapolated from 8,192 by n^2.00"


def test_the_exponent_is_that_of_the_nearest_lengths():
    # A constant part that no longer counts at the end.
    found = outlook({64: 1.0, 128: 1.0, 256: 1.0, 4096: 4.0, 8192: 8.0, 16384: 16.0}, 32768)
    assert found.value == pytest.approx(32.0, rel=1e-9)


def test_two_lengths_leave_a_doubt():
    found = outlook({1024: 1.0, 2048: 2.0}, 4096)
    assert found.value == pytest.approx(4.0)
    assert found.high / found.value == pytest.approx(exp(2 * UNKNOWN_ERROR * log(2)))
    assert found.low * found.high == pytest.approx(found.value**2)


@pytest.mark.parametrize(
    ("figures", "length"), [({}, 1024), ({1024: 1.0}, 2048), (QUADRATIC, 8192 * 9), (QUADRATIC, 1024 // 9)]
)
def test_too_little_or_too_far_gives_none(figures, length):
    assert outlook(figures, length) is None


def test_figures_that_scatter_tell_nothing_about_other_lengths():
    scattered = {1024: 1.0, 2048: 30.0, 4096: 2.0}
    assert outlook(scattered, 8192) is None
    assert outlook(scattered, 2048).value == 30.0


def test_a_decreasing_cost_says_so_without_a_negative_zero():
    assert "n^0.00" in str(outlook({1000: 1.0, 2000: 0.9999999}, 4000))
