"""The small ResNet and MobileNet that host gates: what they compute, and their sizes."""

import pytest
import torch

from regardant.backbone.mobilenet import MobileNet
from regardant.backbone.resnet import Residual, ResNet


@torch.no_grad()
def test_a_residual_block_by_its_parts():
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    same, wider = Residual(4, 4).double().eval(), Residual(4, 6, stride=2).double().eval()
    torch.testing.assert_close(same(x), (x + same.second(same.first(x).relu())).relu())
    torch.testing.assert_close(wider(x), (wider.skip(x) + wider.second(wider.first(x).relu())).relu())
    assert wider(x).shape == (2, 6, 3, 3)


@torch.no_grad()
def test_every_stage_but_the_first_halves_the_map():
    model, sizes = ResNet(classes=5, channels=1, widths=(4, 6, 8), depths=(1, 2, 1)), []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    assert model(torch.zeros(2, 1, 16, 20)).shape == (2, 5)
    assert sizes == [(4, 16, 20), (6, 8, 10), (8, 4, 5)]


def test_a_blocks_weights_lie_nearly_all_in_its_pointwise_convolution():
    block = MobileNet(classes=3).blocks[2]
    counts = [sum(each.numel() for each in part.parameters()) for part in block]
    assert counts == [9 * 64 + 2 * 64, 0, 64 * 64 + 2 * 64, 0]


@torch.no_grad()
def test_a_block_that_keeps_its_size_can_be_left_out():
    model, images = MobileNet(classes=3).eval(), torch.randn(1, 3, 9, 13)
    with_it, kept = model(images), model.blocks[2]
    seen = {}
    handles = [
        model.blocks[at].register_forward_hook(
            lambda m, given, made, at=at: seen.update({at: (given[0], made)})
        )
        for at in (1, 3)
    ]
    model.blocks[2] = torch.nn.Identity()
    without = model(images)
    for handle in handles:
        handle.remove()
    assert torch.equal(seen[3][0], seen[1][1])
    assert not torch.allclose(with_it, without)
    model.blocks[2] = kept
    assert torch.equal(model(images), with_it)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ResNet(classes=2, widths=()), "widths is empty"),
        (lambda: ResNet(classes=2, widths=(4, 8), depths=(1,)), r"depths is \[1\]"),
        (lambda: ResNet(classes=2, widths=(4,), depths=(0,)), r"depths is \[0\]"),
        (lambda: MobileNet(classes=2, widths=(4, 8), strides=(1,)), r"strides is \[1\]"),
        (lambda: MobileNet(classes=2, widths=(), strides=()), "widths is empty"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
