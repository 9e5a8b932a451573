"""The parts of backbones, each against what is worked out by hand or by torch's own."""

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regardant.backbone.kit.activation import TanhGELU
from regardant.backbone.kit.convolution import (
    BatchNorm,
    Convolution,
    DepthwiseConvolution,
    Pooling,
    SqueezeExcite,
    absorbs,
)
from regardant.backbone.kit.feed_forward import DepthwiseFeedForward, FeedForward, GatedConvolution
from regardant.backbone.kit.field import Field, field_of, in_turn
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.official import Rule, translate
from regardant.backbone.kit.reparameterized import ParallelConvolutions, fold, fuse
from regardant.backbone.kit.residual import DropPath, InTurn, Residual
from regardant.backbone.kit.stage import Block, drop_rates, make_layers
from regardant.backbone.kit.stem import convolutions, patches
from regardant.backbone.kit.tokens import TokenAttention, TokenBackbone
from regardant.core.record import Record


def with_statistics(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for part in network.modules():
        if isinstance(part, BatchNorm):
            for given in (part.running_mean, part.weight.data, part.bias.data):
                given.copy_(torch.randn(given.shape, generator=generator))
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
    return network.double().eval()


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


@pytest.mark.parametrize("maker", [FeedForward, DepthwiseFeedForward, GatedConvolution])
def test_feed_forwards_see_what_they_say(maker):
    torch.manual_seed(0)
    layer, size = maker(4, 6).double(), (4, 5)
    x = torch.randn(1, *size, 4, dtype=torch.float64, requires_grad=True)
    field = field_of(layer, *size).relation
    for at in (0, 7, 19):
        (gradient,) = torch.autograd.grad(layer(x).flatten(1, 2)[0, at].sum(), x)
        assert torch.equal(gradient[0].abs().amax(-1).flatten() > 0, field[at])


def test_a_convolutional_glu_gates_by_its_first_half():
    layer = GatedConvolution(2, 3).double()
    x = torch.randn(1, 3, 3, 2, dtype=torch.float64)
    gate, value = layer.widen(x).split(3, dim=-1)
    gate = F.gelu(F.conv2d(gate.permute(0, 3, 1, 2), layer.convolution.weight, layer.convolution.bias,
                           padding=1, groups=3)).permute(0, 2, 3, 1)  # fmt: skip
    assert torch.allclose(layer(x), layer.narrow(gate * value), atol=1e-12)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop, x = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y == y[:, :1, :1]).all()
    assert float(y.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(drop.eval()(x), x)
    with pytest.raises(ValueError, match="drop_path is 1"):
        DropPath(1)


def test_residuals_scale_and_shortcut():
    branch = Residual(nn.Identity(), 3, scale=0.5, shortcut=nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        branch.shortcut.weight.copy_(2 * torch.eye(3))
    assert torch.allclose(branch(torch.ones(1, 3)), torch.full((1, 3), 2.5))


def test_a_block_hands_the_record_on_and_may_lose_tokens_between():
    class Notes(nn.Module):
        def forward(self, x, *, record=None):
            record.handed["scores"] = x.mean(-1)
            return x

    class KeepsTheBest(nn.Module):
        def forward(self, x, *, record=None):
            best = record.handed["scores"].topk(2, dim=1).indices
            record.note("kept", best)
            return x.gather(1, best[..., None].expand(-1, -1, x.shape[-1]))

    block = Block(4, Notes(), FeedForward(4, 8), between=KeepsTheBest(), norm=lambda dim: nn.Identity())
    record, x = Record(), torch.randn(3, 5, 4)
    assert block(x, record=record).shape == (3, 2, 4)
    assert torch.equal(record.seen["kept"][0], x.mean(-1).topk(2, dim=1).indices)


def test_layers_by_their_letters():
    made = make_layers(
        "ABA", {"A": lambda rate: nn.Dropout(rate), "B": lambda rate: DropPath(rate)}, (0, 0.1, 0.2)
    )
    assert [type(each) for each in made] == [nn.Dropout, DropPath, nn.Dropout]
    assert made[2].p == 0.2
    with pytest.raises(ValueError, match="no layer is called 'C'"):
        make_layers("C", {"A": nn.Identity}, (0,))
    with pytest.raises(ValueError, match="holds 1 rates for 2 layers"):
        make_layers("AA", {"A": nn.Identity}, (0,))


def test_drop_rates_grow_linearly_over_all_stages():
    rates = drop_rates(0.3, (1, 2, 1))
    assert [len(each) for each in rates] == [1, 2, 1]
    assert [rate for each in rates for rate in each] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_stems_have_the_sizes_and_norms_that_they_say():
    x = torch.randn(1, 9, 13, 3)
    assert patches(3, 8, size=4)(x).shape == (1, 3, 4, 8)
    assert patches(3, 8, size=4, kernel=7)(x).shape == (1, 3, 4, 8)
    first = patches(3, 8, size=2, norm_first=True)
    assert isinstance(first[0], nn.LayerNorm) and first[0].normalized_shape == (3,)
    stem = convolutions((3, 4, 8), (2, 2))
    assert stem(x).shape == (1, 3, 4, 8)
    assert [type(part) for part in stem] == [Convolution, BatchNorm, nn.GELU, Convolution, BatchNorm]


def test_fields_of_parts_in_turn():
    parts = [Convolution(1, 1, 3, stride=2), nn.GELU(), DepthwiseConvolution(1, 3)]
    field = in_turn(parts, 1, 12)
    assert field.after == (1, 6)
    # Position 2 hears of 1, 2 and 3, and those of the pixels 2 - 1 … 6 + 1.
    assert field.relation[2].nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert field_of(nn.Bilinear(1, 1, 1), 2, 2).relation.all()
    assert torch.equal(field_of(nn.LayerNorm(1), 2, 2).relation, Field.itself((2, 2)).relation)


@pytest.mark.parametrize("identity", [False, True])
def test_parallel_convolutions_fold_into_one(identity):
    block = ParallelConvolutions(6, 6, (7, 3, 1), groups=3, identity=identity)
    with_statistics(block)
    x = torch.randn(2, 9, 8, 6, dtype=torch.float64)
    before, one = block.reference(x), block.fused()
    assert one.kernel_size == (7, 7)
    assert (one(x) - before).abs().max() < 1e-12
    assert (block(x) - before).abs().max() < 1e-12


def test_a_strided_pair_folds_too():
    block = with_statistics(ParallelConvolutions(3, 6, (7, 3), stride=2, groups=3))
    x = torch.randn(1, 9, 9, 3, dtype=torch.float64)
    assert (block.fused()(x) - block.reference(x)).abs().max() < 1e-12


def test_pitfall_folding_uses_running_statistics():
    pair = with_statistics(InTurn(Convolution(2, 3, 3, bias=False), BatchNorm(3)))
    x = torch.randn(1, 5, 5, 2, dtype=torch.float64)
    before = pair(x, plainly=True)
    assert (fold(*pair)(x) - before).abs().max() < 1e-12
    holder = nn.ModuleList([pair])
    fuse(holder)
    assert isinstance(pair[1], nn.Identity) and (pair(x) - before).abs().max() < 1e-12


@pytest.mark.parametrize("first", [nn.Linear(4, 6), Convolution(4, 6, 3, stride=2, groups=2, bias=False)])
def test_in_eval_mode_a_layer_absorbs_the_norm_behind_it(first):
    pair = with_statistics(InTurn(first, BatchNorm(6), nn.GELU()))
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    assert absorbs(*pair[:2], x)
    together, apart = pair(x), pair(x, plainly=True)
    assert (together - apart).abs().max() < 1e-12
    wanted = [x, *pair.parameters()]
    found, expected = (torch.autograd.grad(each.square().sum(), wanted) for each in (together, apart))
    for one, other in zip(found, expected):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def test_pitfall_a_norm_stays_by_itself_while_it_learns_or_is_listened_to():
    pair, x = with_statistics(InTurn(nn.Linear(4, 6), BatchNorm(6))), torch.randn(2, 5, 6, 4).double()
    handle = pair[1].register_forward_hook(lambda part, given, y: y + 1)
    assert not absorbs(*pair, x)
    raised = pair(x)
    handle.remove()
    assert (raised - pair(x) - 1).abs().max() < 1e-12
    assert not absorbs(*pair, x[:1, :1, :2])  # more weights than positions
    assert not absorbs(*pair.train(), x)
    block = with_statistics(ParallelConvolutions(2, 2, (3, 1)))
    block.branches[1][1].register_forward_hook(lambda part, given, y: 0 * y)
    x = x[..., :2]
    assert (block(x) - block.branches[0](x)).abs().max() < 1e-12


def test_gelu_by_tanh_is_torchs():
    x = torch.linspace(-30, 30, 6001)
    part, expected = TanhGELU(), F.gelu(x, approximate="tanh")
    assert (part(x) - expected).abs().max() < 1e-6
    assert torch.equal(part(x.requires_grad_()), expected)
    assert part(x).requires_grad


def test_kernels_without_a_middle_are_refused():
    with pytest.raises(ValueError, match="only odd ones have a middle"):
        ParallelConvolutions(2, 2, (4, 3))
    with pytest.raises(ValueError, match="groups is 4, which does not divide 6 and 8"):
        Convolution(6, 8, 3, groups=4)


def test_rules_rename_cut_and_drop_in_turn():
    rules = (
        Rule("^body", "stages"),
        Rule(r"\.qkv\.", parts=(".to_q.", ".to_k.", ".to_v.")),
        Rule("lookup$"),
        Rule("scale$", "scale", change=lambda value: value * 2),
    )
    state = {"body.0.qkv.weight": torch.arange(6), "a.lookup": torch.ones(1), "b.scale": torch.ones(1)}
    found = translate(state, rules)
    assert list(found) == ["stages.0.to_q.weight", "stages.0.to_k.weight", "stages.0.to_v.weight", "b.scale"]
    assert found["stages.0.to_k.weight"].tolist() == [2, 3] and found["b.scale"].tolist() == [2]


def test_heads_norm_before_or_after_the_mean():
    head = PooledHead(3, 2, norm=nn.LayerNorm(3), normed="before")
    x = torch.randn(2, 4, 5, 3)
    assert torch.allclose(head(x), head.classify(head.norm(x).mean((1, 2))))
    other = PooledHead(3, 2, norm=nn.LayerNorm(3), hidden=4)
    pooled = other.norm(x.mean((1, 2)))
    assert torch.allclose(other(x), other.classify(torch.tanh(other.hidden[0](pooled))))


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
