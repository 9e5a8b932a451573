"""HAT: the pitfalls of its blocks."""

import pytest
import torch
from torch import nn

from regardant.backbone.hat import HAT, HybridBlock, _overlapping, _turned
from regardant.grid.hat import OverlappingAttention


def hybrid(**given):
    torch.manual_seed(0)
    shape = dict(window=4, shift=2, compress=2, squeeze=4, expansion=2, drop_path=0.0, channels=True)
    return HybridBlock(8, 2, **shape | given).double().eval()


def test_pitfall_the_branch_of_channels_sees_the_normed_map_unshifted():
    block = hybrid()
    for name in ("attention.to_out", "feed.branch.narrow"):
        layer = block.get_submodule(name)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    assert torch.allclose(block(x), x + 0.01 * block.channels(block.norm(x)), atol=1e-12)


def test_pitfall_only_the_windows_are_dropped():
    block = hybrid(drop_path=0.999)
    nn.init.zeros_(block.feed.branch.narrow.weight)
    nn.init.zeros_(block.feed.branch.narrow.bias)
    torch.manual_seed(1)
    x = torch.randn(3, 8, 8, 8, dtype=torch.float64)
    assert torch.allclose(block.train()(x), x + 0.01 * block.channels(block.norm(x)), atol=1e-12)


def test_pitfall_a_map_no_larger_than_the_window_is_not_shifted():
    shifted, plain = hybrid(window=8, shift=4), hybrid(window=8, shift=0)
    plain.load_state_dict(shifted.state_dict())
    x = torch.randn(1, 5, 8, 8, dtype=torch.float64)
    assert torch.allclose(shifted(x), plain(x), atol=1e-12)


def test_pitfall_zeros_off_the_map_take_weight_through_their_bias():
    torch.manual_seed(0)
    layer = OverlappingAttention(4, 1, window=2, overlap=1.0).double()
    with torch.no_grad():
        layer.to_qkv.weight[4:8].zero_()
        layer.to_qkv.bias[4:8].zero_()
        layer.to_out.weight.copy_(torch.eye(4))
        layer.to_out.bias.zero_()
        layer.position.table.zero_()
    x = torch.randn(1, 2, 2, 4, dtype=torch.float64)
    # Sixteen equal keys, of which four are on the map.
    value = layer.to_qkv(x)[..., 8:].sum(dim=(1, 2)) / 16
    assert torch.allclose(layer(x), value.expand(1, 2, 2, 4), atol=1e-12)


@pytest.mark.parametrize(("window", "halo"), [(4, 1), (16, 4)])
def test_pitfall_the_table_of_the_overlap_is_as_wide_as_both_windows(window, halo):
    """Each offset between a window and what is around it is used by some query, and moves the result."""
    layer, side = OverlappingAttention(6, 2, window=window).double(), 2 * window + 2 * halo - 1
    layer(torch.randn(1, 3 * window, 3 * window, 6, dtype=torch.float64)).square().sum().backward()
    assert layer.halo == halo and layer.position.table.shape == (2, side, side)
    assert (layer.position.table.grad != 0).all()


def test_released_tables_become_ours():
    """By their own indices: query minus key in windows, and a wrapping key minus query in the overlap."""
    m, wide = 4, 6
    table = torch.randn((2 * m - 1) ** 2, 3)
    ours = _turned(table)
    for query, key in (((0, 0), (3, 1)), ((2, 1), (0, 3)), ((1, 1), (1, 1))):
        index = (query[0] - key[0] + m - 1) * (2 * m - 1) + query[1] - key[1] + m - 1
        assert torch.equal(ours[:, key[0] - query[0] + m - 1, key[1] - query[1] + m - 1], table[index])
    side, halo = m + wide - 1, 1
    table = torch.randn(side**2, 3)
    ours, far = _overlapping(table), m - 1 + halo
    for query, key in (((0, 0), (5, 0)), ((3, 2), (0, 0)), ((1, 3), (4, 5))):
        # `key` counts from the corner of the larger window, which stands `halo` before the smaller one's.
        index = (key[0] - query[0] + m - wide + 1) * side + key[1] - query[1] + m - wide + 1
        rows, columns = (k - halo - q + far for k, q in zip(key, query))
        assert torch.equal(ours[:, rows, columns], table[index])


def test_images_are_enlarged_around_their_mean_colour():
    model = HAT(dim=8, groups=1, blocks=1, heads=2, window=4, compress=2, squeeze=4, features=4, scale=2)
    for parameter in model.last.parameters():
        nn.init.zeros_(parameter)
    image = model.eval()(torch.rand(1, 3, 5, 6))
    assert image.shape == (1, 3, 10, 12)
    assert torch.allclose(image, model.mean[:, None, None].expand_as(image[0])[None])
    assert model.mean.tolist() == pytest.approx([0.4488, 0.4371, 0.4040])


def test_scales_that_shuffling_cannot_make_are_refused():
    with pytest.raises(ValueError, match="scale is 5, but an image is enlarged by a power of two, or by 3"):
        HAT(dim=8, groups=1, scale=5)
