"""FFNet (Yun et al., "MetaMixer Is All You Need", 2024, arXiv 2406.02021): convolutions in attention's frame.

Every layer is two residuals without norms in front, the norms being batch norms inside:

    x ← x + DW_V(GELU(DW_K(BN(W_q x))))          FFNified attention; kernels 3, 3, 7, 7 in the four stages
    x ← x + W₂ GELU(W₁ BN(DW x))                 three times as wide inside; kernels 7, of FFNet-1 3

While it is trained, a 7×7 convolution is the sum of a 7×7 and a 3×3 one, each with its batch norm; `fuse()`
makes one of them. Between stages a 7×7 convolution of stride 2 doubles the channels, each giving two, before
x ← x + W BN(x). As the released code has it; the squeeze-and-excitation that it can add, and which no
released model has, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.convolution import BatchNorm, Convolution, DepthwiseConvolution
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.field import Field, in_turn
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.reparameterized import ParallelConvolutions, fold
from regardant.backbone.kit.residual import InTurn
from regardant.backbone.kit.stage import Block, Stage, drop_rates
from regardant.backbone.kit.stem import convolutions
from regardant.core.errors import require
from regardant.grid.metamixer_ffnet import MetaMixer

REPARAMETERIZED = 7
"""Kernels from here on are trained with a smaller one beside them, of half the width rounded down."""


def _layer(match: re.Match) -> str:
    """In all stages but the first, number 0 is what brings the map to its size."""
    stage, number = int(match[1]), int(match[2])
    if stage == 0:
        return f"stages.0.layers.{number}."
    return f"stages.{stage}.entry." if number == 0 else f"stages.{stage}.layers.{number - 1}."


class FFNet(Backbone):
    """Four stages of FFNified attention and of a channel mixer in turn."""

    variants: ClassVar = {
        "ffnet_1": dict(
            widths=(80, 160, 320, 640), depths=(2, 2, 8, 2), mixer_kernels=(3, 3, 3, 3), drop_path=0.1
        ),
        "ffnet_2": dict(widths=(88, 176, 352, 704), depths=(3, 3, 15, 3), drop_path=0.15),
        "ffnet_3": dict(widths=(96, 192, 384, 768), depths=(4, 4, 22, 5), drop_path=0.35, scale=1e-6),
        "ffnet_4": dict(widths=(128, 256, 512, 1024), depths=(4, 4, 27, 3), drop_path=0.4, scale=1e-6),
    }
    small = (
        dict(widths=(6, 12), depths=(1, 2), kernels=(3, 7), mixer_kernels=(7, 3), stem=4, classes=3),
        dict(widths=(4, 4, 8), depths=(1, 1, 1), kernels=(7, 3, 3), mixer_kernels=(3, 3, 7), stem=3,
             classes=2, scale=0.5, image_channels=1),
    )  # fmt: skip
    official = (
        Rule(r"^patch_embed\.0\.c\.", "stem.0."),
        Rule(r"^patch_embed\.0\.bn\.", "stem.1."),
        Rule(r"^patch_embed\.2\.c\.", "stem.3."),
        Rule(r"^patch_embed\.2\.bn\.", "stem.4."),
        Rule(r"^stages\.(\d+)\.(\d+)\.", _layer),
        Rule(r"\.token_mixer\.0\.main\.fc\.c\.", ".mix.branch.query.0."),
        Rule(r"\.token_mixer\.0\.main\.fc\.bn\.", ".mix.branch.query.1."),
        Rule(r"\.token_mixer\.0\.main\.conv1\.", ".mix.branch.key."),
        Rule(r"\.token_mixer\.0\.main\.conv2\.", ".mix.branch.value."),
        Rule(r"\.token_mixer\.0\.layer_scale", ".mix.scale"),
        Rule(r"\.channel_mixer\.main\.conv\.", ".feed.branch.0."),
        Rule(r"\.channel_mixer\.main\.fc1\.", ".feed.branch.1.widen."),
        Rule(r"\.channel_mixer\.main\.fc2\.", ".feed.branch.1.narrow."),
        Rule(r"\.channel_mixer\.layer_scale", ".feed.scale"),
        Rule(r"\.entry\.proj\.0\.", ".entry.0."),
        Rule(r"\.entry\.proj\.1\.conv\.bn\.", ".entry.1.norm."),
        Rule(r"\.entry\.proj\.1\.conv\.c\.", ".entry.1.convolution."),
        Rule(r"\.conv\.(c|bn)\.", r".branches.0.\1."),
        Rule(r"\.conv1\.(c|bn)\.", r".branches.1.\1."),
        Rule(r"\.c\.(\w+)$", r".0.\1"),
        Rule(r"\.bn\.(\w+)$", r".1.\1"),
        Rule(r"^norm\.", "head.norm."),
        Rule(r"^head\.(weight|bias)$", r"head.classify.\1"),
    )

    def __init__(
        self, *, widths: Sequence[int], depths: Sequence[int], kernels: Sequence[int] = (3, 3, 7, 7),
        mixer_kernels: Sequence[int] = (7, 7, 7, 7), stem: int = 64, expansion: int = 3,
        scale: float | None = None, classes: int = 1000, drop_path: float = 0.0, features_only: bool = False,
        image_channels: int = 3,
    ):  # fmt: skip
        super().__init__(
            strides=[4 * 2**stage for stage in range(len(widths))], channels=widths, classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        for before, after in pairwise(widths):
            require(
                after % before == 0,
                f"widths is {tuple(widths)}, but every channel of a stage becomes as many of the next: "
                f"{after} is no multiple of {before}",
            )
        self.stem = convolutions((image_channels, stem, widths[0]), (2, 2))
        rates = drop_rates(drop_path, depths)
        self.stages = nn.ModuleList()
        for at, dim in enumerate(widths):
            layers = [
                Block(
                    dim, ffnified_attention(dim, kernels[at]),
                    channel_mixer(dim, mixer_kernels[at], expansion * dim), norm=_no_norm, drop_path=rate,
                    scale=scale,
                )
                for rate in rates[at]
            ]  # fmt: skip
            entry = None if at == 0 else merging(widths[at - 1], dim)
            self.stages.append(Stage(layers, entry=entry))
        if not features_only:
            self.head = PooledHead(widths[-1], classes, norm=BatchNorm(widths[-1]), normed="before")
        truncated_normal(self)
        for part in self.modules():
            if isinstance(part, Convolution):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)


def _no_norm(dim: int) -> nn.Module:
    return nn.Identity()


def depthwise(dim: int, kernel: int) -> nn.Module:
    """As keys or values: with a bias, or in two branches with batch norms."""
    if kernel < REPARAMETERIZED:
        return DepthwiseConvolution(dim, kernel)
    return ParallelConvolutions(dim, dim, (kernel, kernel // 2), groups=dim)


def ffnified_attention(dim: int, kernel: int) -> Mixer:
    query = InTurn(Convolution(dim, dim, 1, bias=False), BatchNorm(dim))
    return Mixer(query, depthwise(dim, kernel), depthwise(dim, kernel))


class Mixer(MetaMixer):
    """The frame, with what its parts see of a map."""

    def field(self, height: int, width: int) -> Field:
        return in_turn((self.query, self.key, self.activation, self.value), height, width)


def channel_mixer(dim: int, kernel: int, hidden: int) -> InTurn:
    if kernel < REPARAMETERIZED:
        first: nn.Module = InTurn(DepthwiseConvolution(dim, kernel, bias=False), BatchNorm(dim))
    else:
        first = ParallelConvolutions(dim, dim, (kernel, kernel // 2), groups=dim)
    return InTurn(first, FeedForward(dim, hidden))


def merging(before: int, after: int) -> InTurn:
    """Half the size, more channels."""
    return InTurn(ParallelConvolutions(before, after, (7, 3), stride=2, groups=before), NormedSkip(after))


class NormedSkip(nn.Module):
    """x + W BN(x): one 1×1 convolution when fused."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = BatchNorm(dim)
        self.convolution = Convolution(dim, dim, 1, bias=False)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return x + self.convolution(self.norm(x))

    def field(self, height: int, width: int) -> Field:
        return Field.itself((height, width))

    @torch.no_grad()
    def fused(self) -> Convolution:
        """W diag(γ / σ) + 1, and W (β - μ γ / σ) for a bias."""
        dim = self.convolution.in_channels
        itself = Convolution(dim, dim, 1, groups=dim, bias=False).to(self.convolution.weight)
        nn.init.ones_(itself.weight)
        normed = fold(itself, self.norm)
        gain, offset = normed.weight.flatten(), normed.bias
        weight = self.convolution.weight.flatten(1)
        one = Convolution(dim, dim, 1).to(weight)
        one.weight.copy_(
            (weight * gain + torch.eye(dim, dtype=weight.dtype, device=weight.device))[..., None, None]
        )
        one.bias.copy_(weight @ offset)
        return one.train(self.training)
