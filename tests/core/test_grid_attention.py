"""Attention inside groups against every pair written out, with each position."""

import pytest
import torch
from torch.nn.functional import conv2d

from regardant.core.grid_attention import GroupedAttention, WholeMapAttention, joint_softmax
from regardant.core.grid_pattern import Dilated2d, Stripe, Window2d
from regardant.core.grid_position import (
    DepthwisePosition,
    GridPosition,
    LearnedMap,
    LogSpacedBias,
    RelativeLogits2d,
    TableBias,
    ValueConvolution,
)
from regardant.core.grid_window import WindowAttention


class Told(GroupedAttention):
    """What the test says that the heads see."""

    def __init__(self, patterns, position):
        super().__init__(8, 4, position=position)
        self.told = patterns

    def patterns(self, *size):
        return tuple(None if each is None else each.on(*size) for each in self.told)


POSITIONS = {
    "none": lambda count: GridPosition(),
    "table": lambda count: TableBias(4 // count, 13, std=1.0),
    "log": lambda count: LogSpacedBias(4 // count, 7, hidden=8),
    "relative": lambda count: RelativeLogits2d(2, 13),
    "depthwise": lambda count: DepthwisePosition(8),
    "values": lambda count: ValueConvolution(8 // count),
}
PATTERNS = {
    "windows": (Window2d(4),),
    "shifted": (Window2d(4, shift=2),),
    "strided": (Dilated2d((2, 3)),),
    "all": (None,),
    "stripes": (Stripe(2), Stripe(2, axis=1)),
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("patterns", PATTERNS)
@pytest.mark.parametrize("size", [(7, 13), (1, 1), (8, 8)], ids=str)
def test_groups_equal_all_pairs_written_out(patterns, position, size):
    told = PATTERNS[patterns]
    torch.manual_seed(0)
    layer = Told(told, [POSITIONS[position](len(told)) for _ in told]).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    if patterns == "shifted" and position == "values":
        with pytest.raises(ValueError, match="the windows are shifted"):
            layer(x)
        return
    assert (layer(x) - layer.reference(x)).abs().max() < 1e-12


def test_a_table_bias_by_hand():
    bias = TableBias(1, 2)
    with torch.no_grad():
        bias.table.copy_(torch.arange(9.0).view(1, 3, 3))
    rows, columns = torch.tensor([[0, 1, -1]]), torch.tensor([[0, 0, 1]])
    assert bias.added(torch.zeros(1, 1, 1, 4), rows, columns).flatten().tolist() == [4, 7, 2]


def test_a_resized_table_keeps_its_corners_and_middle():
    bias = TableBias(2, 3, std=1.0)
    other = bias.resized(5)
    assert other.table.shape == (2, 9, 9)
    for mine, its in ((0, 0), (2, 4), (4, 8)):
        assert torch.allclose(bias.table[:, mine, mine], other.table[:, its, its])
    assert torch.allclose(other.table[:, 1, 0], (bias.table[:, 0, 0] + bias.table[:, 1, 0]) / 2)


def test_resized_relative_logits_keep_their_ends():
    bias = RelativeLogits2d(4, 3, halo=1)
    other = bias.resized(4)
    assert other.rows.shape == (9, 4)
    for at in (0, -1):
        assert torch.allclose(bias.rows[at], other.rows[at])
    assert torch.allclose(bias.rows[3], other.rows[4])


def test_the_scale_of_log_spaced_offsets_is_the_trained_one():
    bias = LogSpacedBias(1, (5, 9), hidden=4)
    scaled = bias.scaled(torch.tensor([[4.0, 8.0], [-2.0, 0.0], [12.0, 1.0]]))
    # 8 · 4 / (5 - 1) = 8 → log2 9 / 3; it goes on beyond what was trained.
    wanted = torch.tensor([[9.0, 9.0], [5.0, 1.0], [25.0, 2.0]]).log2() / 3
    assert torch.allclose(scaled, wanted * torch.tensor([[1, 1], [-1, 1], [1, 1]]))


def test_learned_positions_interpolate_at_other_sizes():
    learned = LearnedMap((2, 3), 4)
    x = torch.zeros(1, 2, 3, 4)
    assert torch.equal(learned(x)[0], learned.table)
    constant = LearnedMap((4, 4), 2)
    with torch.no_grad():
        constant.table.fill_(3.0)
    assert torch.allclose(constant(torch.zeros(1, 7, 5, 2)), torch.full((1, 7, 5, 2), 3.0))


def test_value_convolution_on_one_stripe_is_an_ordinary_convolution():
    place = ValueConvolution(3).double()
    v = torch.randn(1, 4, 5, 3, dtype=torch.float64)
    layer = place.convolution
    wanted = conv2d(v.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=1, groups=3).permute(0, 2, 3, 1)
    assert torch.allclose(place.values_plainly(v, None), wanted, atol=1e-12)


def test_a_window_as_large_as_the_map_is_attention_to_everything():
    torch.manual_seed(0)
    window, whole = WindowAttention(8, 2, window=7, shift=3).double(), WholeMapAttention(8, 2).double()
    whole.load_state_dict(window.state_dict())
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    assert torch.allclose(window(x), whole(x), atol=1e-12)


def test_joint_softmax_is_one_softmax():
    first, second = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    found = torch.cat(joint_softmax([first, second]), dim=-1)
    assert torch.equal(found, torch.cat([first, second], dim=-1).softmax(-1))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="they look in 3 different ways"):
        Told((Window2d(2),) * 3, None)(torch.zeros(1, 2, 2, 8))
