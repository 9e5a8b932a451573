"""MaxViT: its pitfalls."""

import pytest
import torch

from regardant.backbone.kit.field import Field
from regardant.backbone.maxvit import MaxViT, mobile_convolution
from regardant.compare.backbone_cost import counted
from regardant.grid.maxvit import BlockAttention, GridAttention


def test_pitfall_the_grid_attends_over_strided_positions():
    torch.manual_seed(0)
    layer = GridAttention(4, 1, cells=2).double()
    x = torch.randn(1, 4, 6, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, 1, 2].sum(), x)
    seen = gradient[0].abs().sum(-1).nonzero().tolist()
    # A stride of 4 / 2 rows and 6 / 2 columns, not windows of 2.
    assert seen == [[1, 2], [1, 5], [3, 2], [3, 5]]


def test_pitfall_the_bias_of_the_grid_counts_steps_of_the_grid():
    torch.manual_seed(0)
    small, large = GridAttention(4, 2, cells=2).double(), GridAttention(4, 2, cells=2).double()
    large.load_state_dict(small.state_dict())
    x = torch.randn(1, 2, 2, 4, dtype=torch.float64)
    spread = torch.randn(1, 6, 6, 4, dtype=torch.float64)
    spread[:, ::3, ::3] = x
    assert torch.allclose(large(spread)[:, ::3, ::3], small(x), atol=1e-12)


def test_pitfall_windows_keep_their_size_and_the_stride_follows_the_map():
    block, grid = BlockAttention(4, 1, window=7), GridAttention(4, 1, cells=7)
    assert block.patterns(14, 28)[0].window == (7, 7)
    assert grid.patterns(14, 28)[0].stride == (2, 4)
    assert grid.patterns(15, 3)[0].stride == (3, 1)


def test_one_block_and_one_grid_connect_every_two_positions_and_two_blocks_do_not():
    size = (16, 16)
    block = Field.of_pattern(BlockAttention(4, 1, window=4).receptive_field(*size), size)
    grid = Field.of_pattern(GridAttention(4, 1, cells=4).receptive_field(*size), size)
    assert block.then(grid).relation.all()
    assert not block.then(block).relation.all() and not grid.then(grid).relation.all()


def test_pitfall_each_attention_has_a_feed_forward_of_its_own():
    model = MaxViT(**MaxViT.small[0])
    _, block, grid = model.stages[0].layers[0]
    assert block.feed.branch is not grid.feed.branch
    assert [type(each.mix.branch) for each in (block, grid)] == [BlockAttention, GridAttention]


def test_pitfall_squeezing_stands_before_the_projection():
    names = [type(part).__name__ for part in mobile_convolution(8, 8, stride=1, drop_path=0).branch]
    assert names.index("SqueezeExcite") == len(names) - 2 and names[-1] == "Linear"


def test_multiply_adds_are_linear_in_the_area():
    first, last = counted("maxvit_tiny", size=224), counted("maxvit_tiny", size=448)
    assert last.multiply_adds / first.multiply_adds == pytest.approx(4, rel=0.01)
