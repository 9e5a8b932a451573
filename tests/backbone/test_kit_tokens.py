"""Backbones of one size throughout: their contract, and what the last layer need not compute."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from regardant.backbone.kit.convolution import (
    DepthwiseConvolution,
)
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.residual import InTurn
from regardant.backbone.kit.stage import Block
from regardant.backbone.kit.stem import patches
from regardant.backbone.kit.tokens import TokenAttention, TokenBackbone


class SmallTokens(TokenBackbone):
    """Patches of 4, a layer before the class token and one behind it."""

    small: ClassVar = (dict(classes=3, class_at=1), dict(classes=2, class_at=None))

    def __init__(self, *, classes, class_at, features_only=False, image_channels=3):
        super().__init__(
            dim=8, patch=4, class_at=class_at, classes=classes, features_only=features_only,
            image_channels=image_channels,
        )  # fmt: skip
        self.stem = patches(image_channels, 8, size=4, norm=None)
        first = Block(8, DepthwiseConvolution(8), FeedForward(8, 16))
        second = DepthwiseConvolution(8) if class_at is None else TokenAttention(8, 2)
        self.layers = nn.ModuleList([first, Block(8, second, FeedForward(8, 16))])
        self.norm = nn.LayerNorm(8)
        self.head = PooledHead(8, classes) if class_at is None else nn.Linear(8, classes)


def test_backbones_of_tokens_keep_the_contract():
    from regardant.contract import check

    report = check(SmallTokens, examples=6)
    assert report.passed, str(report)


@pytest.fixture
def classifier():
    """Layers of tokens, of which the head reads one."""
    torch.manual_seed(0)

    class Small(TokenBackbone):
        def __init__(self):
            super().__init__(dim=8, patch=4, classes=3, features_only=False, image_channels=3)
            self.stem = patches(3, 8, size=4, norm=None)
            self.layers = InTurn(
                *(Block(8, TokenAttention(8, 2), FeedForward(8, 16), scale=0.5, drop_path=0.3)
                  for _ in range(2))
            )  # fmt: skip
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 3)

    return Small().double()


def test_the_last_layer_computes_the_class_token_only(classifier):
    """The same logits and gradients as with all tokens, which somebody who listens gets to see."""
    images = torch.randn(2, 3, 16, 12, dtype=torch.float64)
    found, widths = [], []
    for listening in (False, True):
        if listening:
            last = classifier.layers[-1].feed
            last.register_forward_hook(lambda _, given, out: widths.append(given[0].shape[1]))
        torch.manual_seed(1)  # of the paths that are dropped
        logits = classifier(images)
        found.append([logits, *torch.autograd.grad(logits.square().sum(), list(classifier.parameters()))])
    assert widths == [1 + 4 * 3]
    for alone, among in zip(*found):
        assert torch.allclose(alone, among, atol=1e-12)
    assert torch.allclose(classifier.eval()(images), classifier.reference(images), atol=1e-12)


def test_only_a_plain_last_block_is_left_out(classifier):
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    block = classifier.layers[-1]
    assert block.knows_first(x)
    block.between = nn.LayerNorm(8).double()
    assert not block.knows_first(x)
    other = Block(8, nn.Linear(8, 8), None)
    assert not other.knows_first(x)


class Louder(nn.Module):
    """A gate that looks at all tokens."""

    def forward(self, x):
        return x * (1 + x.mean(dim=1, keepdim=True))


def test_pitfall_a_gate_behind_the_last_layer_sees_all_tokens(classifier):
    images = torch.randn(1, 3, 16, 12, dtype=torch.float64)
    without = classifier.eval()(images)
    last = classifier.layers[-1]
    last.feed = nn.Sequential(last.feed, Louder())
    found = classifier(images)
    assert torch.allclose(found, classifier.reference(images), atol=1e-12)
    assert not torch.allclose(found, without, atol=1e-3)
