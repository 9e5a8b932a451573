import math
import random

import pytest

from regardant.compare.growth import fit

LENGTHS = [1024, 2048, 4096, 8192, 16384]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 2.0])
def test_an_exact_power_is_recovered(exponent):
    growth = fit(LENGTHS, [3e-6 * n**exponent for n in LENGTHS])
    assert growth.exponent == pytest.approx(exponent, abs=1e-12)
    assert growth.error == pytest.approx(0, abs=1e-12)
    assert growth.last == pytest.approx(exponent, abs=1e-12)


def test_noise_stays_within_three_standard_errors():
    drawn = random.Random(0)
    outside = 0
    for _ in range(200):
        values = [n**1.5 * math.exp(drawn.gauss(0, 0.1)) for n in LENGTHS]
        growth = fit(LENGTHS, values)
        outside += abs(growth.exponent - 1.5) > 3 * growth.error
    # Three degrees of freedom: 5.8% of the draws are further off.
    assert outside < 25


def test_a_constant_part_shows_in_the_last_slope():
    growth = fit(LENGTHS, [5e6 + n**2 for n in LENGTHS])
    assert growth.exponent < growth.last < 2


def test_order_does_not_matter():
    shuffled = [4096, 1024, 16384]
    assert fit(shuffled, [n**2.0 for n in shuffled]).last == pytest.approx(2)


def test_two_points_have_no_error():
    growth = fit([10, 100], [1, 10])
    assert growth.error is None
    assert str(growth) == "1.00"


@pytest.mark.parametrize(
    ("lengths", "values", "says"),
    [
        ([8], [1.0], "two different"),
        ([8, 8], [1.0, 2.0], "two different"),
        ([8, 16], [1.0], "2 lengths"),
        ([8, 16], [1.0, 0.0], "positive"),
    ],
)
def test_what_cannot_be_fitted_is_said(lengths, values, says):
    with pytest.raises(ValueError, match=says):
        fit(lengths, values)
