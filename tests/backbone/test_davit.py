"""DaViT: its pitfalls, and its reach."""

import pytest
import torch

from regardant.backbone.davit import DaViT
from regardant.grid.davit import ChannelGroupAttention, channel_attention


def test_pitfall_softmax_is_over_the_channels_of_the_keys():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    out = channel_attention(q, k, v, scale=0.7)
    for channel in range(3):
        logits = torch.stack([(q[0, 0, :, channel] * k[0, 0, :, other]).sum() * 0.7 for other in range(3)])
        wanted = (logits.softmax(0)[None] * v[0, 0]).sum(1)
        assert torch.allclose(out[0, 0, :, channel], wanted, atol=1e-12)


def test_pitfall_groups_come_back_in_their_place():
    torch.manual_seed(0)
    layer = ChannelGroupAttention(6, 3).double()
    with torch.no_grad():
        layer.to_out.weight.copy_(torch.eye(6))
        layer.to_out.bias.zero_()
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64)
    y, qkv = layer(x), layer.to_qkv(x).flatten(1, 2)
    for group in range(3):
        own = [part[:, None, :, 2 * group : 2 * group + 2] for part in qkv.split(6, dim=-1)]
        wanted = channel_attention(*own, scale=2**-0.5)[:, 0]
        assert torch.allclose(y.flatten(1, 2)[..., 2 * group : 2 * group + 2], wanted, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", ["dim", "tokens"])
def test_many_positions_need_neither_queries_keys_nor_values(bias, scale):
    torch.manual_seed(0)
    layer = ChannelGroupAttention(6, 3, scale=scale, bias=bias).double()
    asked = []
    x = torch.randn(2, 4, 3, 6, dtype=torch.float64, requires_grad=True)
    leaves, found = [x, *layer.parameters()], []
    for _ in range(2):
        y = layer(x)
        assert torch.allclose(y, layer.reference(x), atol=1e-12)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
        layer.to_qkv.register_forward_hook(lambda *_: asked.append(1))  # and now they are made
    assert asked == [1, 1]  # by the second pass and its reference
    for short, long in zip(*found):
        assert torch.allclose(short, long, atol=1e-11)


def test_pitfall_in_half_precision_no_sum_over_the_map_is_rounded():
    """Channels far from zero make sums over the map that bfloat16 has no digits for."""
    torch.manual_seed(0)
    layer = ChannelGroupAttention(16, 2, scale="tokens").bfloat16()
    x = (torch.randn(1, 32, 32, 16) + 16 * torch.randn(16)).bfloat16()
    found, rounded = layer(x), layer._by_sums(x.flatten(1, 2)).view_as(x)
    wanted = layer.double()(x.double())
    far = [((each - wanted).abs().max() / wanted.abs().max()).item() for each in (found, rounded)]
    assert far[0] < 0.02 < 0.1 < far[1]


def test_pitfall_channels_know_no_places():
    layer = ChannelGroupAttention(8, 2).double()
    x = torch.randn(1, 3, 4, 8, dtype=torch.float64)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    mixed = x.flatten(1, 2)[:, order].unflatten(1, (3, 4))
    assert torch.allclose(layer(mixed).flatten(1, 2), layer(x).flatten(1, 2)[:, order], atol=1e-12)


def test_pitfall_the_scale_by_tokens_keeps_logits_of_one_size():
    by_dim, by_tokens = ChannelGroupAttention(8, 2), ChannelGroupAttention(8, 2, scale="tokens")
    by_tokens.load_state_dict(by_dim.state_dict())
    by_dim, by_tokens = by_dim.double(), by_tokens.double()
    x = torch.randn(1, 2, 2, 8, dtype=torch.float64)
    # With as many positions as channels in a group, both are the same.
    assert torch.allclose(by_dim(x), by_tokens(x), atol=1e-12)
    larger = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    assert not torch.allclose(by_dim(larger), by_tokens(larger), atol=1e-3)


def test_the_released_roles_are_ours_relabelled():
    """softmax((k s)ᵀ v) applied to q, as the released code has it, from the same projection."""
    torch.manual_seed(0)
    theirs, ours = torch.nn.Linear(4, 12).double(), ChannelGroupAttention(4, 1).double()
    rule = DaViT.official[0]
    with torch.no_grad():
        ours.to_qkv.weight.copy_(rule.change(theirs.weight))
        ours.to_qkv.bias.copy_(rule.change(theirs.bias))
        ours.to_out.weight.copy_(torch.eye(4))
        ours.to_out.bias.zero_()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    q, k, v = theirs(x.flatten(1, 2)).chunk(3, dim=-1)
    weights = ((k * 0.5).mT @ v).softmax(dim=-1)
    assert torch.allclose(ours(x).flatten(1, 2), (weights @ q.mT).mT, atol=1e-12)


def test_a_checkpoint_of_another_variant_is_told_by_its_first_differences():
    small = dict(widths=(8, 16), heads=(2, 4), depths=(1, 1), classes=3, window=3)
    model = DaViT(**small)
    other = {"patch_embeds.0.proj.weight": torch.zeros(16, 3, 7, 7), "norms.weight": torch.zeros(16)}
    with pytest.raises(ValueError) as said:
        model.load_official(other)
    assert "stem.0.weight is (16, 3, 7, 7) there and (8, 3, 7, 7) here" in str(said.value)
    assert str(said.value).count("is missing there") == 4 and "keys or shapes differ" in str(said.value)
