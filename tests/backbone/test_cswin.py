"""CSWin: the counts of the released models, the pitfalls, and the cross that a position sees."""

import pytest
import torch
from torch.nn.functional import conv2d

from regardant.backbone.cswin import CSWin
from regardant.backbone.kit.field import Field
from regardant.grid.cswin import CrossShapedAttention

RELEASED = {
    "cswin_tiny": 22_320_552,
    "cswin_small": 34_643_304,
    "cswin_base": 77_382_184,
    "cswin_large": 173_262_664,
}
"""Parameters of the released models, to the last one."""


@pytest.mark.parametrize("name", RELEASED)
def test_counts_are_those_of_the_released_models(name):
    with torch.device("meta"):
        made = CSWin(**CSWin.variant(name))
    assert sum(each.numel() for each in made.parameters()) == RELEASED[name]


def seen(layer, at, size):
    x = torch.randn(1, *size, layer.dim, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, at[0], at[1]].abs().sum(), x)
    return gradient[0].abs().sum(-1) > 0


def test_pitfall_the_first_heads_look_down_columns():
    torch.manual_seed(0)
    layer = CrossShapedAttention(8, stripe=1).double()
    with torch.no_grad():
        layer.to_out.weight.copy_(torch.eye(8))
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    (down,) = torch.autograd.grad(layer(x)[0, 2, 3, :4].sum(), x)
    (across,) = torch.autograd.grad(layer(x)[0, 2, 3, 4:].sum(), x)
    assert (down[0].abs().sum(-1) > 0).nonzero()[:, 1].unique().tolist() == [3]
    assert (across[0].abs().sum(-1) > 0).nonzero()[:, 0].unique().tolist() == [2]


def test_a_position_sees_a_cross_as_wide_as_the_stripes():
    layer = CrossShapedAttention(8, heads_each=2, stripe=2).double()
    cross = seen(layer, (2, 5), (6, 8))
    wanted = torch.zeros(6, 8, dtype=torch.bool)
    wanted[2:4], wanted[:, 4:6] = True, True
    assert torch.equal(cross, wanted)


def test_pitfall_lepe_stays_inside_its_stripe():
    torch.manual_seed(0)
    layer = CrossShapedAttention(4, stripe=2).double()
    with torch.no_grad():
        layer.to_out.weight.copy_(torch.eye(4))
        layer.to_out.bias.zero_()
        layer.to_qkv.weight[:8].zero_()
        layer.to_qkv.bias[:8].zero_()
    x = torch.randn(1, 4, 6, 4, dtype=torch.float64)
    v = layer.to_qkv(x)[..., 8:10]
    place = layer.positions[0].convolution
    stripes = v.unflatten(2, (3, 2))
    # No logits: the mean of the stripe, and the convolution with zeros beyond its edge.
    means = stripes.mean(dim=(1, 3), keepdim=True).expand_as(stripes).flatten(2, 3)
    parts = [conv2d(stripes[:, :, at].permute(0, 3, 1, 2), place.weight, place.bias, padding=1, groups=2)
             for at in range(3)]  # fmt: skip
    wanted = means + torch.cat(parts, dim=3).permute(0, 2, 3, 1)
    assert torch.allclose(layer(x)[..., :2], wanted, atol=1e-12)
    whole = conv2d(v.permute(0, 3, 1, 2), place.weight, place.bias, padding=1, groups=2).permute(0, 2, 3, 1)
    assert not torch.allclose(layer(x)[..., :2], means + whole, atol=1e-3)


def test_pitfall_halves_need_an_even_number_of_heads():
    with pytest.raises(ValueError, match="heads is 3, but half of them look down and half across"):
        CSWin(width=12, depths=(1,), heads=(3,), stripes=(1,))
    with pytest.raises(ValueError, match="dim=10 does not divide into heads_each=2"):
        CrossShapedAttention(10, heads_each=2)


def test_pitfall_a_stripe_that_does_not_divide_the_map_ends_narrower():
    layer = CrossShapedAttention(8, stripe=3).double()
    cross = seen(layer, (0, 6), (4, 7))
    wanted = torch.zeros(4, 7, dtype=torch.bool)
    wanted[:3], wanted[:, 6] = True, True
    assert torch.equal(cross, wanted)


def test_two_layers_reach_the_whole_map():
    size = (9, 11)
    cross = Field.of_pattern(CrossShapedAttention(4).receptive_field(*size), size)
    assert cross.then(cross).relation.all() and not cross.relation.all()


def test_stages_need_one_of_each():
    with pytest.raises(ValueError, match="there are 2 depths, 2 heads and 4 stripes"):
        CSWin(width=8, depths=(1, 1), heads=(2, 2))
