"""EViT: which tokens go on and what is fused, and the dossier's pitfalls."""

from itertools import pairwise
from math import ceil

import pytest
import torch

from regardant.backbone.evit import EViT, GuidingAttention, Reorganization, keep_at
from regardant.backbone.kit.stage import Block
from regardant.backbone.kit.tokens import TokenAttention
from regardant.compare.backbone_cost import counted
from regardant.core.record import Record


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def small(**own):
    torch.manual_seed(0)
    config = dict(dim=8, heads=2, depth=3, reorganise=(1,), keep=0.5, image=32, patch=8, classes=3)
    model = EViT(**config | own).double().eval()
    for each in model.parameters():
        each.add_(0.3 * torch.randn_like(each))
    return model


@torch.no_grad()
def by_hand(layer: Block, x, keep, fuse=True):
    """One layer of the equations, sample by sample."""
    mixer, found = layer.mix.branch, []
    for sample in x[:, None]:
        q, k, v = mixer.project(layer.mix.norm(sample))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        stream = sample + mixer.to_out((weights @ v).transpose(1, 2).flatten(2))
        asked = weights[0].mean(0)[0, 1:].tolist()
        best = sorted(range(len(asked)), key=lambda place: -asked[place])
        count = ceil(keep * len(asked))
        rows = [stream[0, 0]] + [stream[0, 1 + place] for place in best[:count]]
        if fuse and count < len(asked):
            rows.append(sum(asked[place] * stream[0, 1 + place] for place in best[count:]))
        stream = torch.stack(rows)[None]
        found.append(stream + layer.feed.branch(layer.feed.norm(stream)))
    return torch.cat(found)


def test_tokens_of_the_paper():
    """197 tokens in front of the first reorganisation, and what was fused counts as a patch in the next."""
    model, seen = EViT(**EViT.variant("evit_small") | dict(dim=6, heads=1), classes=1).eval(), []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda layer, given: seen.append(given[0].shape[1]))
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert seen == [197] * 4 + [140] * 3 + [100] * 3 + [72] * 2


@torch.no_grad()
@pytest.mark.parametrize("plainly", [False, True])
@pytest.mark.parametrize("fuse", [True, False])
def test_pitfall_selection_lies_between_attention_and_feed_forward(fuse, plainly):
    """By the attention of the same layer, the class token aside; weights are not made to sum to one."""
    model, images = small(fuse=fuse), draw(2, 3, 32, 32)
    record, x = Record(), draw(2, 17, 8, seed=1)
    record.handed["places"] = torch.arange(16).expand(2, -1)
    found = model.layers[1](x, record=record, plainly=plainly)
    expected = by_hand(model.layers[1], x, 0.5, fuse=fuse)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert found.shape[1] == 1 + 8 + fuse
    torch.testing.assert_close(model(images), model.reference(images), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_pitfall_the_class_token_is_always_kept_and_never_chosen():
    part, x, attention = Reorganization(0.5, fuse=False), draw(1, 5, 2), torch.tensor([[0.1, 0.4, 0.2, 0.05]])
    record = Record()
    record.handed |= {"attention of the class token": attention.double(), "places": torch.arange(4)[None]}
    assert torch.equal(part(x, record=record), x[:, [0, 2, 3]])
    assert record.seen["kept"][0].tolist() == [[1, 2]]


@torch.no_grad()
def test_what_was_fused_may_be_fused_again():
    model = small(reorganise=(0, 1, 2), keep=0.3)
    record = Record()
    model(draw(3, 3, 32, 32), record=record)
    kept = record.seen["kept"]
    assert [each.shape[1] for each in kept] == [5 + 1, 2 + 1, 1 + 1]
    assert all((each[:, -1] == -1).all() for each in kept)
    for before, after in pairwise(kept):
        assert all(set(late.tolist()) <= set(early.tolist()) for late, early in zip(after, before))


@torch.no_grad()
def test_all_patches_are_kept_where_rounding_up_leaves_none():
    model, images = small(keep=0.95), draw(1, 3, 32, 32)
    model.set_keep(0.99)
    whole = small(reorganise=())
    whole.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images), whole(images), atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_pitfall_a_fixed_number_goes_on_whatever_the_scores():
    """Of 16 patches 12, and one for the others, in every sample alike: none is chosen twice."""
    model, record = small(keep=0.7), Record()
    model(1e3 * draw(4, 3, 32, 32), record=record)
    for kept in record.seen["kept"][0].tolist():
        assert len(kept) == ceil(0.7 * 16) + 1 == len(set(kept))


@torch.no_grad()
def test_features_have_every_patch_as_it_left():
    model = small(features_only=True, reorganise=(0, 1))
    images, record = draw(2, 3, 32, 32), Record()
    x = model.positions(model.stem(images.permute(0, 2, 3, 1))).flatten(1, 2)
    x = torch.cat([model.class_token.expand(2, 1, -1), x], dim=1)
    (found,) = model(images, record=record)
    first, second = record.seen["kept"]
    left = model.layers[0].mix(x, record=Record())[:, 1:]
    for sample in range(2):
        stayed = set(first[sample].tolist())
        for place in set(range(16)) - stayed:
            expected = model.norm(left[sample, place])
            torch.testing.assert_close(found[sample, :, place // 4, place % 4], expected)
        gone_later = stayed - set(second[sample].tolist()) - {-1}
        assert len(gone_later) == 8 - (second[sample] >= 0).sum()
    with torch.enable_grad():
        images.requires_grad_()
        model(images)[0].sum().backward()
    assert images.grad.isfinite().all()


def test_pitfall_only_one_row_of_the_map_is_made_again():
    model = small()
    kinds = [type(layer.mix.branch) for layer in model.layers]
    assert kinds == [TokenAttention, GuidingAttention, TokenAttention]
    more = []
    for reorganise in ((), (2,)):
        shapes = EViT(dim=8, heads=2, depth=3, reorganise=reorganise, keep=1.0, image=64, patch=4, classes=1)
        more.append(counted(shapes, size=64).multiply_adds)
    assert more[1] - more[0] == 257 * 8


@torch.no_grad()
def test_what_was_fused_teaches_the_attention():
    part, record = Reorganization(0.5), Record()
    attention = torch.tensor([[0.3, 0.1, 0.4, 0.2]], dtype=torch.float64).requires_grad_()
    record.handed |= {"attention of the class token": attention, "places": torch.arange(4)[None]}
    x = draw(1, 5, 3)
    with torch.enable_grad():
        part(x, record=record)[0, -1].sum().backward()
    expected = x[0, 1:].sum(-1)
    assert torch.allclose(attention.grad[0], expected * torch.tensor([0.0, 1, 0, 1], dtype=torch.float64))


@torch.no_grad()
def test_released_positions_hold_the_class_tokens_first():
    model = EViT(dim=4, heads=1, depth=1, reorganise=(), image=16, patch=8, classes=2)
    own = {
        "cls_token": (1, 1, 4), "pos_embed": (1, 5, 4), "patch_embed.proj.weight": (4, 3, 8, 8),
        "patch_embed.proj.bias": (4,), "blocks.0.norm1.weight": (4,), "blocks.0.norm1.bias": (4,),
        "blocks.0.attn.qkv.weight": (12, 4), "blocks.0.attn.qkv.bias": (12,),
        "blocks.0.attn.proj.weight": (4, 4), "blocks.0.attn.proj.bias": (4,), "blocks.0.norm2.weight": (4,),
        "blocks.0.norm2.bias": (4,), "blocks.0.mlp.fc1.weight": (16, 4), "blocks.0.mlp.fc1.bias": (16,),
        "blocks.0.mlp.fc2.weight": (4, 16), "blocks.0.mlp.fc2.bias": (4,), "norm.weight": (4,),
        "norm.bias": (4,), "head.weight": (2, 4), "head.bias": (2,),
    }  # fmt: skip
    state = {name: torch.randn(shape) for name, shape in own.items()}
    model.load_official(state)
    assert torch.equal(model.class_token, state["cls_token"][0, 0] + state["pos_embed"][0, 0])
    assert torch.equal(model.positions.table[1, 0], state["pos_embed"][0, 3])
    state["pos_embed"] = torch.randn(1, 6, 4)
    with pytest.raises(ValueError, match=r"positions.table is \(1, 5, 4\) there and \(2, 2, 4\) here"):
        model.load_official(state)


def test_the_share_falls_along_half_a_cosine():
    assert keep_at(0.0, 0.7) == keep_at(1 / 30, 0.7) == 1.0
    assert keep_at(0.2, 0.7) == pytest.approx(0.85)
    assert keep_at(11 / 30, 0.7) == keep_at(1.0, 0.7) == pytest.approx(0.7)
    assert keep_at(0.1, 0.7) == pytest.approx(0.7 + 0.15 * 1.8090169944)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"keep": 0.0}, "keep is 0.0"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"reorganise": (3,)}, r"reorganise holds \[3\], but the layers are 0 to 2"),
        ({"depth": 0, "reorganise": ()}, "depth is 0"),
        ({"image": 4}, "image is 4"),
    ],
)
def test_bad_input_is_one_sentence(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**own)


def test_a_rate_that_cannot_be_is_refused_later_as_well():
    with pytest.raises(ValueError, match="keep is -1"):
        small().set_keep(-1)
    with pytest.raises(ValueError, match=r"begin is 0\.5"):
        keep_at(0.2, 0.7, begin=0.5, end=0.5)
