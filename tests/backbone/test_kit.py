"""The parts of backbones, each against what is worked out by hand or by torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regardant.backbone.kit.activation import TanhGELU
from regardant.backbone.kit.convolution import (
    BatchNorm,
    Convolution,
    DepthwiseConvolution,
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
from regardant.core.record import Record


def with_statistics(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for part in network.modules():
        if isinstance(part, BatchNorm):
            for given in (part.running_mean, part.weight.data, part.bias.data):
                given.copy_(torch.randn(given.shape, generator=generator))
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
    return network.double().eval()


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
