"""FFNet: the paper's counts, its parts, and what becomes of them when they are fused."""

import pytest
import torch
from torch import nn

from regardant.backbone.kit.convolution import BatchNorm
from regardant.backbone.metamixer_ffnet import FFNet, NormedSkip, ffnified_attention, merging

# Millions of parameters as released, fused.


def seen(module, seed=0):
    """A module in float64 whose batch norms have seen something."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value in (part.weight, part.bias, part.running_mean):
                value.data.copy_(torch.randn(value.shape, generator=generator))
            part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("config", FFNet.small)
def test_fused_and_unfused_are_one(config):
    model = seen(FFNet(**config))
    x = torch.randn(2, config.get("image_channels", 3), 37, 32, dtype=torch.float64)
    before = model(x)
    torch.testing.assert_close(model.fuse()(x), before, rtol=1e-9, atol=1e-9)
    norms = [name for name, part in model.named_modules() if isinstance(part, BatchNorm)]
    assert norms == ["head.norm"]


@torch.no_grad()
def test_pitfall_the_smaller_kernel_lies_in_the_middle_of_the_larger():
    mixer = seen(ffnified_attention(3, 7))
    large, small = mixer.key.branches
    fused = mixer.key.fused()
    gain = [branch[1].weight / (branch[1].running_var + branch[1].eps).sqrt() for branch in (large, small)]
    expected = large[0].weight * gain[0].view(-1, 1, 1, 1)
    expected[:, :, 2:5, 2:5] += small[0].weight * gain[1].view(-1, 1, 1, 1)
    torch.testing.assert_close(fused.weight, expected)
    offsets = [branch[1].bias - branch[1].running_mean * each for branch, each in zip((large, small), gain)]
    torch.testing.assert_close(fused.bias, offsets[0] + offsets[1])


@torch.no_grad()
def test_pitfall_order_of_the_mixers_parts():
    mixer, x = seen(ffnified_attention(4, 3)), torch.randn(1, 5, 6, 4, dtype=torch.float64)
    convolution, norm = mixer.query
    expected = mixer.value(nn.functional.gelu(mixer.key(norm(convolution(x)))))
    torch.testing.assert_close(mixer(x), expected)


@torch.no_grad()
def test_a_skip_behind_a_norm_becomes_one_convolution():
    part, x = seen(NormedSkip(5)), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(part(x), x + part.convolution(part.norm(x)))
    torch.testing.assert_close(part.fused()(x), part(x))


def test_pitfall_widths_that_are_no_multiples_are_refused():
    with pytest.raises(ValueError, match="320 is no multiple of 128"):
        FFNet(widths=(64, 128, 320), depths=(1, 1, 1), classes=2)


def test_merging_makes_three_of_each_channel_apart():
    part, x = seen(merging(4, 12))[0], torch.randn(1, 5, 8, 4, dtype=torch.float64, requires_grad=True)
    merged = part(x)
    assert merged.shape == (1, 3, 4, 12)
    for channel in range(12):
        (slope,) = torch.autograd.grad(merged[..., channel].sum(), x, retain_graph=True)
        assert [bool(slope[..., each].any()) for each in range(4)] == [
            each == channel // 3 for each in range(4)
        ]
