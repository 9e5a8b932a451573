"""Convolutions, pooling and channel gates on maps with channels last, against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regardant.backbone.kit.convolution import (
    Convolution,
    Pooling,
    SqueezeExcite,
)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(7, 4, 3), (7, 4, 2), (3, 2, 1), (2, 2, 0), (3, 1, 1)]
)
def test_a_strided_convolution_rounds_up_and_is_torchs_where_the_size_fits(kernel, stride, padding):
    layer = Convolution(3, 4, kernel, stride=stride, padding=padding).double()
    for height, width in ((8, 12), (7, 13), (5, 9)):
        x = torch.randn(2, height, width, 3, dtype=torch.float64)
        y = layer(x)
        assert y.shape == (2, -(-height // stride), -(-width // stride), 4)
        below, right = -height % stride, -width % stride
        filled = F.pad(x.permute(0, 3, 1, 2), (0, right, 0, below))
        wanted = F.conv2d(filled, layer.weight, layer.bias, stride=stride, padding=padding)
        assert torch.allclose(y.permute(0, 3, 1, 2), wanted[:, :, : y.shape[1], : y.shape[2]], atol=1e-12)


PRODUCTS = {
    "patches of images": (3, 6, 8, 1),
    "patches of features": (16, 5, 2, 1),
    "single positions": (256, 4, 1, 1),
    "two for each channel": (4, 8, 3, 4),
}


@pytest.mark.parametrize("case", PRODUCTS)
@pytest.mark.parametrize("channels_first", [True, False])
def test_what_runs_as_a_product_is_the_convolution(case, channels_first):
    before, after, kernel, groups = PRODUCTS[case]
    torch.manual_seed(0)
    stride, padding = (2, 1) if groups > 1 else (kernel, 0)
    layer = Convolution(before, after, kernel, stride=stride, padding=padding, groups=groups).double()
    maps = torch.randn(2, before, 16, 24, dtype=torch.float64, requires_grad=True)
    x = maps.permute(0, 2, 3, 1)
    if not channels_first:
        x = x.contiguous()
    wanted = F.conv2d(maps, layer.weight, layer.bias, stride, padding, groups=groups).permute(0, 2, 3, 1)
    found = layer(x)
    assert torch.allclose(found, wanted, atol=1e-12)
    leaves, grad = [maps, layer.weight, layer.bias], torch.randn_like(wanted)
    for ours, theirs in zip(*(torch.autograd.grad(out, leaves, grad) for out in (found, wanted))):
        assert torch.allclose(ours, theirs, atol=1e-11)


def test_patches_that_do_not_fill_the_map_are_filled_up():
    layer = Convolution(16, 3, 2, stride=2, padding=0).double()
    maps = torch.randn(1, 16, 5, 7, dtype=torch.float64)
    wanted = F.conv2d(F.pad(maps, (0, 1, 0, 1)), layer.weight, layer.bias, 2).permute(0, 2, 3, 1)
    assert torch.allclose(layer(maps.permute(0, 2, 3, 1)), wanted, atol=1e-12)


def test_same_padding_is_centred_and_heavier_behind():
    layer = Convolution(1, 1, 3, stride=2, padding="same", bias=False)
    nn.init.ones_(layer.weight)
    x = torch.arange(4.0).view(1, 1, 4, 1)
    # Zeros: none before a side of 4 and one behind it; one row of 1 has one above and one below.
    assert layer(x).flatten().tolist() == [0 + 1 + 2, 2 + 3]
    assert layer(torch.arange(5.0).view(1, 1, 5, 1)).flatten().tolist() == [0 + 1, 1 + 2 + 3, 3 + 4]


def test_pooling_leaves_out_what_is_off_the_map():
    x = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
    assert Pooling("mean", 2, stride=2)(x).flatten().tolist() == [1.5, 6.0]
    assert Pooling("largest", 2, stride=2)(-x).flatten().tolist() == [-1.0, -6.0]
    assert Pooling("largest", 3, stride=2)(-x).flatten().tolist() == [-1.0, -2.0]


def test_squeeze_excite_by_hand():
    gate = SqueezeExcite(2, 1, nn.ReLU)
    with torch.no_grad():
        gate.squeeze.weight.copy_(torch.tensor([[1.0, 1.0]]))
        gate.squeeze.bias.zero_()
        gate.excite.weight.copy_(torch.tensor([[1.0], [0.0]]))
        gate.excite.bias.zero_()
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    wanted = x * torch.tensor([torch.sigmoid(torch.tensor(5.0)), 0.5])
    assert torch.allclose(gate(x), wanted)
