"""Super-resolution: the small image is the large one halved, and decibels are what they should be."""

import pytest
import torch
from torch.nn import functional as F

from regardant.task.super_resolution import SuperResolution, bicubic, draw_patterns


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_inputs_are_the_targets_by_antialiased_bicubic():
    small, large = SuperResolution(side=16).batch(3, generator())
    assert small.shape == (3, 3, 16, 16) and large.shape == (3, 3, 32, 32)
    torch.testing.assert_close(
        small, F.interpolate(large, size=(16, 16), mode="bicubic", antialias=True), rtol=0, atol=1e-6
    )
    assert large.min() >= 0 and large.max() <= 1


def test_decibels_of_a_known_error():
    task = SuperResolution()
    targets = torch.full((4, 3, 8, 8), 0.5)
    total, count = task.metric(targets + torch.tensor([0.1, -0.1, 0.01, 0.0]).view(4, 1, 1, 1), targets)
    assert count == 4
    assert total.item() == pytest.approx(20 + 20 + 40 + 100, abs=1e-3)


def test_bicubic_leaves_something_to_do_and_more_of_it_the_finer_the_pattern():
    found = []
    for periods in ((3.0, 5.0), (10.0, 16.0)):
        task = SuperResolution(periods=periods, lines=0, shapes=0, held_out=32)
        ((small, large),) = task.validation()
        total, count = task.metric(bicubic(small), large)
        found.append((total / count).item())
    assert 12 < found[0] < found[1] - 3 < 40


def test_stripes_have_the_period_that_was_drawn():
    """One period alone: the spectrum of the stripes peaks at 1 / period, whatever the direction."""
    images = draw_patterns(16, 64, periods=(8.0, 8.0), lines=0, shapes=0, generator=generator())
    grey = images.mean(dim=1)
    power = torch.fft.fft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs()
    frequency = torch.fft.fftfreq(64)
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    near = (radius - 1 / 8).abs() < 0.03
    low = radius < 0.05  # the two fields' own brightness
    share = power.square()[:, near].sum(dim=1) / power.square()[:, ~low].sum(dim=1)
    assert share.median() > 0.7


@pytest.mark.parametrize(
    ("own", "sentence"),
    [({"side": 2}, "side is 2"), ({"periods": (1.0, 4.0)}, "periods is"), ({"lines": -1}, "lines is -1")],
)
def test_bad_input(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        SuperResolution(**own).batch(1, generator())
