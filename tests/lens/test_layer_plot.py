from itertools import pairwise

import pytest
import torch

from regardant.lens.layer_plot import plot_layers


def test_every_curve_is_drawn_and_named_and_no_names_overlap(tmp_path):
    draw = torch.Generator().manual_seed(0)
    curves = {name: torch.rand(31, generator=draw) for name in ("one", "two", "three")}
    curves["four"] = curves["three"].clone()
    figure = plot_layers(curves, value="accuracy", chance=0.5, title="depth", path=tmp_path / "depth.png")
    axes = figure.axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    for name, curve in curves.items():
        assert list(lines[name]) == pytest.approx(curve.tolist())
    heights = sorted(text.xy[1] for text in axes.texts)
    low, high = axes.get_ylim()
    assert sorted(text.get_text() for text in axes.texts) == sorted(curves)
    assert min(b - a for a, b in pairwise(heights)) > 0.04 * (high - low)
    assert (tmp_path / "depth.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_curves_are_refused():
    with pytest.raises(ValueError, match="curves is empty"):
        plot_layers({}, value="accuracy")
    with pytest.raises(ValueError, match="must be of the same layers"):
        plot_layers({"a": torch.zeros(3), "b": torch.zeros(4)}, value="accuracy")
    with pytest.raises(ValueError, match="as many as can be told apart"):
        plot_layers({str(each): torch.zeros(3) for each in range(9)}, value="accuracy")
