"""Does attention's frame of query, key and value carry it, with convolutions for its products?

One network of two stages that reads digits, with four mixers: FFNified attention, self-attention, one
depthwise convolution, and pooling. What a mixer has fewer weights, its feed-forwards have more.
"""

from time import perf_counter

import torch
from torch import nn

from regardant.backbone.kit.convolution import DepthwiseConvolution, Pooling
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.residual import InTurn
from regardant.backbone.kit.stage import Block, Stage
from regardant.backbone.kit.stem import patches
from regardant.backbone.metamixer_ffnet import FFNet
from regardant.claim.context import Context
from regardant.claim.count import parameters
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.core.grid_attention import WholeMapAttention
from regardant.core.grid_position import LearnedMap
from regardant.grid.metamixer_ffnet import FFNifiedAttention
from regardant.task.digits import NoisyDigits
from regardant.train.fit import evaluate

TASK = NoisyDigits(noise=0.5, scale=2)
WIDTHS, DEPTH, KERNEL = (32, 64), 2, 7
MIXERS = {
    "ffnified": lambda dim: FFNifiedAttention(dim, kernel=KERNEL),
    "attention": lambda dim: WholeMapAttention(dim, 4),
    "convolution": lambda dim: DepthwiseConvolution(dim, KERNEL),
    "pooling": lambda dim: Pooling("mean", 3, stride=1, padding=1),
}


def network(mixer) -> nn.Module:
    """Every block has as many weights as one of attention with a feed-forward twice as wide."""

    def block(dim: int) -> Block:
        budget = parameters(WholeMapAttention(dim, 4)) + parameters(FeedForward(dim, 2 * dim))
        made = mixer(dim)
        hidden = round((budget - parameters(made) - dim) / (2 * dim + 1))
        return Block(dim, made, FeedForward(dim, hidden))

    first, second = ([block(dim) for _ in range(DEPTH)] for dim in WIDTHS)
    return nn.Sequential(
        ChannelsLast(), patches(1, WIDTHS[0], size=2), LearnedMap(8, WIDTHS[0]), Stage(first),
        Stage(second, entry=patches(*WIDTHS, size=2)),
        PooledHead(WIDTHS[-1], TASK.classes, norm=nn.LayerNorm(WIDTHS[-1])),
    )  # fmt: skip


class ChannelsLast(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 2, 3, 1)


def trained(mixer):
    def unit(run):
        model = run.fit(lambda: network(mixer), TASK, steps=300, batch=32, learning_rate=2e-3)
        return {"accuracy": evaluate(model, TASK), "parameters": parameters(model)}

    return unit


@torch.no_grad()
def timed() -> dict[str, float]:
    """Milliseconds of a mixer on 32×32 positions of 64 channels, the best of ten in turn."""
    x, best = torch.randn(4, 32, 32, 64), dict.fromkeys(MIXERS, float("inf"))
    made = {name: InTurn(make(64)) for name, make in MIXERS.items()}
    for _ in range(10):
        for name, mixer in made.items():
            began = perf_counter()
            mixer(x)
            best[name] = min(best[name], 1e3 * (perf_counter() - began))
    return best


@torch.no_grad()
def fused() -> dict[str, float]:
    """How far a small FFNet moves when it is fused, its batch norms having seen something."""
    torch_generator = torch.Generator().manual_seed(0)
    model = FFNet(**FFNet.small[0])
    images = torch.randn(4, 3, 64, 64, generator=torch_generator)
    model.train()(images)
    before = model.eval()(images)
    return {"moved": (model.fuse()(images) - before).abs().max().item()}


def claim(context: Context) -> Outcome:
    moved, time = context.check("fused", fused)["moved"], context.check("time", timed)
    found = context.measure({name: trained(mixer) for name, mixer in MIXERS.items()})
    ours, attention, convolution, _ = (each["accuracy"] for each in found.values())
    noise = 2 * (ours.error**2 + attention.error**2) ** 0.5
    counts = [each["parameters"].mean for each in found.values()]
    return Outcome(
        setting="digits at 16×16 under noise of 0.5, patches of 2; two stages of 2 blocks, 32 and 64 wide, "
        "300 steps of 32; the paper trains on ImageNet, COCO, ADE20K, and for images, points and forecasts",
        figures=[
            Figure.of("accuracy", found, "accuracy", ours="ffnified"),
            Figure.of("parameters", found, "parameters", ours="ffnified"),
            Figure.once(
                "milliseconds on 4 maps of 32×32×64",
                {"ffnified": time["ffnified"]},
                {name: value for name, value in time.items() if name != "ffnified"},
            ),
        ],
        criteria=[
            quality(
                "no worse than self-attention, but for two standard errors",
                ours.mean - attention.mean,
                at_least=-noise,
            ),
            quality("better than one depthwise convolution", ours.mean - convolution.mean, at_least=0.0),
            cost("faster than self-attention", time["ffnified"] / time["attention"], at_most=1.0),
            exact("parameters within 2 % of each other", max(counts) / min(counts) - 1, at_most=0.02),
            exact("fused and unfused are one", moved, at_most=1e-4),
        ],
    )
