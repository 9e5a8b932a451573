import math

import pytest
import torch

from regardant.lens.head_map import HeadMap

VALUES = torch.tensor([[0.1, 0.9, 0.0], [0.5, math.nan, 0.4]])


def test_top_and_above_are_highest_first_and_leave_out_what_was_not_measured():
    found = HeadMap(VALUES)
    assert found.measured == 5
    assert found.top(3) == [(0, 1), (1, 0), (1, 2)]
    assert found.above(0.3) == [(0, 1), (1, 0), (1, 2)]
    assert found.above(2.0) == []
    assert found.share_above(0.3) == 3 / 5
    assert found[0, 1] == pytest.approx(0.9)
    with pytest.raises(ValueError, match="count is 6, but 5 heads were measured"):
        found.top(6)


def test_drawn_heads_are_none_of_those_left_out():
    found = HeadMap(VALUES)
    for seed in range(5):
        drawn = found.draw(3, without=[(0, 1), (1, 0)], generator=torch.Generator().manual_seed(seed))
        assert sorted(drawn) == [(0, 0), (0, 2), (1, 2)]


def test_maps_rank_alike_where_both_have_values():
    found = HeadMap(VALUES)
    assert found.spearman(HeadMap(VALUES.exp())) == pytest.approx(1.0)
    assert found.spearman(HeadMap(-VALUES)) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="but are of one model"):
        found.spearman(HeadMap(torch.zeros(3, 3)))


def test_rows_are_plain_where_pandas_is_missing(monkeypatch):
    monkeypatch.setattr("regardant.lens.head_map.find_spec", lambda name: None)
    rows = HeadMap(VALUES).frame()
    assert rows[0] == {"layer": 0, "head": 1, "value": pytest.approx(0.9)}
    assert len(rows) == 5
    with pytest.raises(ValueError, match=r"plots need matplotlib"):
        HeadMap(VALUES).plot()


@pytest.mark.parametrize("values", [VALUES, VALUES - 0.4, torch.zeros(30, 9), torch.full((2, 2), 0.5)])
def test_a_plot_shows_every_value_and_is_written(tmp_path, values):
    figure = HeadMap(values, "score").plot(tmp_path / "heads.png", mark=2)
    assert (tmp_path / "heads.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    shown = figure.axes[0].images[0].get_array()
    expected = values.T.numpy()
    assert shown.shape == expected.shape
    assert torch.equal(torch.from_numpy(shown.filled(7.0)), values.T.double().nan_to_num(nan=7.0))
    assert HeadMap(values)._repr_png_()[:4] == b"\x89PNG"
    marked = [text.get_text() for text in figure.axes[0].texts]
    assert marked == ["1", "2"]
