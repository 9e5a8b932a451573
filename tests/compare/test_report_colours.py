"""The colours of systems in the report can be told apart, in both themes and by the colour-blind."""

import itertools
import re

import pytest
import torch

from regardant.compare.report.document import PAGE
from regardant.compare.report.look import COLOURS

# Machado, Oliveira and Fernandes (2009): how colours look without one of the three kinds of cones.
BLINDNESS = {
    "none": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8607, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_CONES = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
TO_AXES = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]


def colours(theme):
    """The names of a theme's colours, and their light."""
    block = (PAGE / "report.css").read_text(encoding="utf-8").split(theme)[1].split("}")[0]
    found = dict(re.findall(r"--(s\d|paper): #([0-9a-f]{6})", block))
    names = sorted(found)
    channels = [[int(found[name][k : k + 2], 16) / 255 for k in (0, 2, 4)] for name in names]
    srgb = torch.tensor(channels, dtype=torch.float64)
    return names, torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def oklab(light):
    """Lightness and two axes of colour, in which equal distances look equally far."""
    cones, axes = (torch.tensor(each, dtype=torch.float64) for each in (TO_CONES, TO_AXES))
    return (light.clamp_min(0) @ cones.T).pow(1 / 3) @ axes.T


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {'])
@pytest.mark.parametrize("kind", BLINDNESS)
def test_the_colours_of_systems_can_be_told_apart(theme, kind):
    names, light = colours(theme)
    seen = oklab(light @ torch.tensor(BLINDNESS[kind], dtype=torch.float64).T)
    slots = [k for k, name in enumerate(names) if name != "paper"]
    assert len(slots) == COLOURS + 1
    # A difference of 0.02 in this space is just noticed.
    assert min((seen[a] - seen[b]).norm() for a, b in itertools.combinations(slots, 2)) > 0.1
    paper = names.index("paper")
    assert all((seen[slot] - seen[paper]).norm() > 0.25 for slot in slots)
