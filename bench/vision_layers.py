"""Layers of vision systems by themselves against their authors': same weights, same map, no network around.

A layer is what its block hears behind the norm, with all that belongs to it (projections, windows cut and
joined, shifts, padding, positions), and without the norm, the residual and the feed-forward. Both sides are
parts of the networks that `vision_official` makes, and get what those hand to them, contiguous as a norm
leaves it: ours a map with channels last, theirs that map or its tokens, or channels first where no norm is.

The authors often spread a layer over its block, which cuts the map into windows before the attention. Then
the block runs as it is, with nothing for its norms, residuals and feed-forward (`bare`), so that nothing of
theirs is written anew. Sizes are those of images of 224 pixels (HAT: of 64 and 32): mostly one image's map
in the first stage, and four images' in the third, where networks have most of their layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench import vision_official as its
from bench.vision_match import Match, Shape, Shapes, channels_first, tokens
from regardant.backbone.evit import PLACES
from regardant.core.record import Record

ADDITIONS = (Tensor.add, Tensor.__add__, Tensor.__radd__)


class Around:
    """What stands around a layer in its block: whatever is added to it stays as it is.

    As the input of a block it tells the shape of x; norms give x itself (`Opened`).
    """

    def __init__(self, x: Tensor | None = None):
        self.x = x

    @property
    def shape(self) -> torch.Size:
        return self.x.shape

    def __add__(self, other: Tensor) -> Tensor:
        return other

    @classmethod
    def __torch_function__(cls, function, types, given=(), named=None):
        """A tensor plus this."""
        return given[0] if function in ADDITIONS else NotImplemented


class Opened(nn.Module):
    """For a norm: the block's input itself."""

    def forward(self, x: Around) -> Tensor:
        return x.x


class Passed(nn.Module):
    """For what is done to the sum of both: nothing."""

    def forward(self, x: Tensor | Around, *_: object) -> Tensor | Around:
        return x


class NothingAdded(nn.Module):
    """For a feed-forward."""

    def forward(self, x: Tensor) -> Around:
        return Around()


class Run(nn.Module):
    """A part of a network, called as what is around it calls it."""

    def __init__(self, part: nn.Module, call: Callable[..., Tensor]):
        super().__init__()
        self.part, self.call = part, call

    def forward(self, *given: Tensor) -> Tensor:
        return self.call(self.part, *given)


def bare(block: nn.Module, *more: object) -> Run:
    """A block of theirs that does its layer alone; `more` is what its network tells it besides."""
    block.norm1, block.norm2, block.mlp = Opened(), Passed(), NothingAdded()
    return Run(block, lambda block, x: block(Around(x), *more))


def first(block: Run) -> Run:
    """Where a block gives more than its output."""
    return Run(block, lambda block, x: block(x)[0])


def stage(ours: nn.Module, shape: Shapes) -> int:
    """The one that is as wide."""
    return ours.channels.index(shape[-1])


def mixer(ours: nn.Module, shape: Shapes, layer: int = 0) -> nn.Module:
    return ours.stages[stage(ours, shape)].layers[layer].mix.branch


def maxvit(axis: str, ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    at, place = stage(ours, shape), {"block": 1, "grid": 2}[axis]
    block = getattr(theirs.stages[at].blocks[0], f"attn_{axis}")
    return ours.stages[at].layers[0][place].mix.branch, bare(block)


def davit_windows(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    block = theirs.main_blocks[stage(ours, shape)][0][0]
    block.cpe = nn.ModuleList([Passed(), Passed()])
    return mixer(ours, shape), first(bare(block, shape[1:3]))


def davit_channels(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    return mixer(ours, shape, layer=1), theirs.main_blocks[stage(ours, shape)][0][1].attn


def cswin(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    return mixer(ours, shape), bare(getattr(theirs, f"stage{stage(ours, shape) + 1}")[0])


def hat_windows(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    """Shifted windows and channels beside them; their network makes the mask once for all blocks."""
    block = ours.groups[0].branch.blocks[1]
    block.norm, block.feed = Opened(), Passed()
    mask, index = theirs.calculate_mask(shape[1:3]), theirs.relative_position_index_SA
    return Run(block, lambda block, x: block(Around(x))), bare(
        theirs.layers[0].residual_group.blocks[1], shape[1:3], index, mask
    )


def hat_overlap(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    block, index = theirs.layers[0].residual_group.overlap_attn, theirs.relative_position_index_OCA
    return ours.groups[0].branch.overlap.mix.branch, bare(block, shape[1:3], index)


def crossvit(ours: nn.Module, theirs: nn.Module, shapes: tuple[Shape, Shape]) -> its.Two:
    """The visit of a class token, from the tokens of its branch and of the other: there, attention, back."""
    widths = [branch.class_token.shape[-1] for branch in ours.branches]
    at, block = widths.index(shapes[0][-1]), theirs.blocks[0]

    def visit(parts: nn.ModuleList, own: Tensor, others: Tensor) -> Tensor:
        leave, attend, come_back = parts
        seen = torch.cat((leave(own[:, 0:1]), others[:, 1:]), dim=1)
        return come_back(attend(seen)[:, 0:1])

    return Run(ours.rounds[0].visits[at], lambda visit, own, others: visit(own[:, :1], others[:, 1:])), Run(
        nn.ModuleList([block.projs[at], block.fusion[at], block.revert_projs[at]]), visit
    )


def spectformer(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    return ours.layers[0].branch[0], theirs.blocks[0].filter


def hierarchical_spectformer(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    """Gates in the first two stages, attention in the others."""
    attention = getattr(theirs, f"block{stage(ours, shape) + 1}")[0].attn
    return mixer(ours, shape), sized(attention, shape)


def sized(layer: nn.Module, shape: Shapes, *more: object) -> Run:
    """A layer on tokens that is told the height and the width."""
    height, width = shape[1:3]
    return Run(layer, lambda layer, x: layer(x, height, width, *more))


def ffnet(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    """In all stages but the first, theirs begin with what brings the map to its size."""
    at = stage(ours, shape)
    return mixer(ours, shape), theirs.stages[at][0 if at == 0 else 1].token_mixer[0].main


def biformer(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    return mixer(ours, shape), theirs.stages[stage(ours, shape)][0].attn


def transnext(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    number = stage(ours, shape) + 1
    places = (getattr(theirs, f"relative_{name}{number}") for name in ("pos_index", "coords_table"))
    return mixer(ours, shape), sized(getattr(theirs, f"block{number}")[0].attn, shape, *places)


def focalnet(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    return mixer(ours, shape), theirs.layers[stage(ours, shape)].blocks[0].modulation


def convit(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    return ours.layers[0].mix.branch, theirs.blocks[0].attn


def evit(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    """The fourth layer sees all tokens, the tenth those that two reorganisations left."""
    number = {197: 3, 100: 9}[shape[1]]

    def reorganised(parts: nn.ModuleList, x: Tensor) -> Tensor:
        attend, reorganise = parts
        record = Record(noting=False)
        record.handed[PLACES] = torch.arange(x.shape[1] - 1).expand(len(x), -1)
        return reorganise(attend(x, record=record), record=record)

    layer = ours.layers[number]
    parts = nn.ModuleList([layer.mix.branch, layer.between])
    return Run(parts, reorganised), first(bare(theirs.blocks[number]))


def inline_pvt(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> its.Two:
    attention = getattr(theirs, f"block{stage(ours, shape) + 1}")[0].attn
    return mixer(ours, shape), sized(attention, shape)


def on_maps(early: int, late: int) -> tuple[Shape, Shape]:
    """The first stage's map of one image and the third's of four, with so many channels."""
    return (1, 56, 56, early), (4, 14, 14, late)


LAYER, OF_TOKENS = partial(Match, layer=True), partial(Match, layer=True, laid=tokens)
LAYERS = (
    LAYER(
        "maxvit window attention / timm", "maxvit-block", its.maxvit, its.TIMM, on_maps(64, 256),
        part=partial(maxvit, "block"),
    ),
    LAYER(
        "maxvit grid attention / timm", "maxvit-grid", its.maxvit, its.TIMM, on_maps(64, 256),
        part=partial(maxvit, "grid"),
    ),
    OF_TOKENS(
        "davit window attention / davit", "davit", its.davit, "davit", on_maps(96, 384), part=davit_windows,
    ),
    OF_TOKENS(
        "davit channel attention / davit", "davit-channel", its.davit, "davit", on_maps(96, 384),
        part=davit_channels,
    ),
    OF_TOKENS(
        "cswin stripe attention / CSWin-Transformer", "cswin-cross", its.cswin, "CSWin-Transformer",
        on_maps(64, 256), part=cswin,
    ),
    OF_TOKENS(
        "hat window and channel attention / HAT", "hat", its.hat, "HAT",
        ((1, 64, 64, 180), (4, 32, 32, 180)), part=hat_windows,
    ),
    OF_TOKENS(
        "hat overlapping attention / HAT", "hat-overlap", its.hat, "HAT",
        ((1, 64, 64, 180), (4, 32, 32, 180)), part=hat_overlap,
    ),
    LAYER(
        "crossvit visit / CrossViT", "crossvit", its.crossvit, "CrossViT",
        (((1, 401, 128), (1, 197, 256)), ((4, 197, 256), (4, 401, 128))), part=crossvit,
    ),
    OF_TOKENS(
        "spectformer spectral gating / SpectFormers", "spectformer-gate", its.spectformer, "SpectFormers",
        ((4, 14, 14, 384),), part=spectformer,
    ),
    OF_TOKENS(
        "spectformer_h spectral gating / SpectFormers", "spectformer-gate", its.hierarchical_spectformer,
        "SpectFormers", ((1, 56, 56, 64), (4, 28, 28, 128)), part=hierarchical_spectformer,
    ),
    OF_TOKENS(
        "spectformer_h attention / SpectFormers", "spectformer-h", its.hierarchical_spectformer,
        "SpectFormers", ((1, 14, 14, 320), (4, 7, 7, 448)), part=hierarchical_spectformer,
    ),
    LAYER(
        "ffnet convolutional mixer / FFNet", "ffnet", its.ffnet, "FFNet", on_maps(80, 320), part=ffnet,
        laid=channels_first,
    ),
    LAYER(
        "biformer routing attention / BiFormer", "biformer-routing", its.biformer, "BiFormer",
        on_maps(64, 256), part=biformer,
    ),
    OF_TOKENS(
        "transnext aggregated attention / TransNeXt", "transnext-aggregated", its.transnext, "TransNeXt",
        on_maps(48, 192), part=transnext,
    ),
    LAYER(
        "focalnet modulation / FocalNet", "focalnet-modulation", its.focalnet, "FocalNet", on_maps(96, 384),
        part=focalnet,
    ),
    OF_TOKENS(
        "convit gated attention / convit", "convit-attention", its.convit, "convit",
        ((1, 14, 14, 192), (4, 14, 14, 192)), part=convit,
    ),
    LAYER(
        "evit attention and reorganisation / evit", "evit", its.evit, "evit",
        ((1, 197, 192), (4, 100, 192)), part=evit,
    ),
    OF_TOKENS(
        "inline linear attention / InLine", "inline-attention", its.inline_pvt, "InLine", on_maps(64, 320),
        part=inline_pvt,
    ),
)  # fmt: skip
