"""Token reorganisation on pretrained vision transformers: what EViT gives on the same weights."""

from __future__ import annotations

import pytest
import torch

from regardant.backbone.evit import EViT
from regardant.core.record import Record
from regardant.edit.apply import apply
from regardant.edit.edit import Edit
from regardant.edit.vision.evit import TokenReorganization
from regardant.host.host import host_of
from regardant.host.seam import HELD
from regardant.world.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return FAMILIES["vit"].make().double()


def images(batch=3):
    return FAMILIES["vit"].inputs(batch=batch)["pixel_values"].double()


def taken_over(model, **own) -> EViT:
    """Our backbone with the host's weights."""
    config, state = model.config, model.state_dict()
    ours = EViT(
        dim=config.hidden_size, heads=config.num_attention_heads, depth=config.num_hidden_layers, image=32,
        patch=8, classes=model.classifier.out_features, expansion=1, **own,
    )  # fmt: skip
    for layer in ours.layers:
        layer.feed.branch.widen = torch.nn.Linear(config.hidden_size, config.intermediate_size)
        layer.feed.branch.narrow = torch.nn.Linear(config.intermediate_size, config.hidden_size)
        for norm in (layer.mix.norm, layer.feed.norm):
            norm.eps = config.layer_norm_eps
    ours.norm.eps = config.layer_norm_eps
    given = {
        "cls_token": state["vit.embeddings.cls_token"],
        "pos_embed": state["vit.embeddings.position_embeddings"],
        "head.weight": state["classifier.weight"],
        "head.bias": state["classifier.bias"],
    }
    for kind in ("weight", "bias"):
        given[f"patch_embed.proj.{kind}"] = state[f"vit.embeddings.patch_embeddings.projection.{kind}"]
        given[f"norm.{kind}"] = state[f"vit.layernorm.{kind}"]
        for layer in range(config.num_hidden_layers):
            at, to = f"vit.layers.{layer}", f"blocks.{layer}"
            parts = [state[f"{at}.attention.{part}_proj.{kind}"] for part in "qkv"]
            given[f"{to}.attn.qkv.{kind}"] = torch.cat(parts)
            given[f"{to}.attn.proj.{kind}"] = state[f"{at}.attention.o_proj.{kind}"]
            given[f"{to}.norm1.{kind}"] = state[f"{at}.layernorm_before.{kind}"]
            given[f"{to}.norm2.{kind}"] = state[f"{at}.layernorm_after.{kind}"]
            for name in ("fc1", "fc2"):
                given[f"{to}.mlp.{name}.{kind}"] = state[f"{at}.mlp.{name}.{kind}"]
    return ours.double().eval().load_official(given)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(("rate", "layers"), [(0.7, None), (0.4, (0, 2)), (0.5, (2,))])
def test_it_is_evit_on_the_same_weights(model, rate, layers, fuse):
    """What is fused passes through the feed-forward as one token, and is chosen or fused again later."""
    ours = taken_over(model, reorganise=layers or (1, 2, 3), keep=rate, fuse=fuse)
    expected = ours(images())
    with apply(model, TokenReorganization(rate=rate, fuse=fuse, layers=layers)):
        found = model(images()).logits
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, model(images()).logits)


def test_attention_stays_fused_and_deeper_layers_have_fewer_tokens(model):
    seen = []
    handles = [
        layer.attention.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
        for layer in model.vit.layers
    ]
    try:
        with apply(model, TokenReorganization(rate=0.5, layers=[0, 1])) as applied:
            model(images())
    finally:
        for handle in handles:
            handle.remove()
    # 16 patches, 8 and the fused one, 5 and the fused one; and the class token.
    assert seen == [17, 10, 7, 7]
    assert {how for _, how in applied.calls} == {"fused"}
    assert applied.fired(applied.edits[0]) == {"read": 2, "between": 2, "keep": 2}


def test_patches_come_back_where_they_were_as_they_left(model):
    edit = TokenReorganization(rate=0.5, layers=[1], fuse=False)
    states = model.vit(images(), output_hidden_states=True).hidden_states
    ours = taken_over(model, reorganise=(1,), keep=0.5, fuse=False)
    record = Record()
    ours(images(), record=record)
    (kept,) = record.seen["kept"]
    with apply(model, edit):
        found = model.vit(images()).last_hidden_state
    assert found.shape[1] == 17
    for sample in range(3):
        gone = sorted(set(range(16)) - set(kept[sample].tolist()))
        rows = [1 + place for place in gone]
        torch.testing.assert_close(found[sample, rows], model.vit.layernorm(states[2][sample, rows]))


@pytest.mark.parametrize("fuse", [True, False])
def test_the_places_that_go_on_are_evits(model, fuse):
    ours, record = taken_over(model, reorganise=(0, 1, 2), keep=0.6, fuse=fuse), Record()
    ours(images(), record=record)
    edit = TokenReorganization(rate=0.6, fuse=fuse, layers=[0, 1, 2])
    with apply(model, edit) as applied:
        model(images(batch=1))
        model(images())
        found = [edit.kept(applied.run, site) for site in host_of(model).sites[:3]]
    for own, expected in zip(found, record.seen["kept"], strict=True):
        assert torch.equal(own.sort().values, expected.sort().values)


def test_layers_are_the_papers_unless_chosen():
    model = FAMILIES["vit"].make(num_hidden_layers=12)
    with apply(model, TokenReorganization()) as applied:
        model(**FAMILIES["vit"].inputs())
    assert applied.fired(applied.edits[0])["keep"] == 3


def test_all_patches_stay_where_rounding_up_leaves_none(model):
    before = model(images()).logits
    with apply(model, TokenReorganization(rate=0.99)):
        assert torch.equal(model(images()).logits, before)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("siglip", "has no class token"),
        ("swin", "the blocks of main are not in one list"),
        ("bert", "has 0 norms"),
        ("llama", "touches no attention of this model"),
    ],
)
def test_models_without_a_class_token_are_refused(name, sentence):
    family = FAMILIES[name]
    model = family.make()
    with pytest.raises(ValueError, match=sentence), apply(model, TokenReorganization()):
        model(**family.inputs())
    assert HELD not in model.__dict__


def test_a_rate_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="rate is 0"):
        TokenReorganization(rate=0)


class Shift(Edit):
    """Makes the stream between attention and feed-forward larger."""

    def between(self, stream, site, run):
        return 1.5 * stream


def test_the_stream_between_the_two_parts_of_a_block(model):
    layer, states = model.vit.layers[2], {}
    handle = layer.layernorm_after.register_forward_pre_hook(lambda module, args: states.update(m=args[0]))
    plain = model(images()).logits
    handle.remove()
    middle = states["m"]
    expected = 1.5 * middle + layer.mlp(layer.layernorm_after(1.5 * middle))
    handle = model.vit.layers[3].register_forward_pre_hook(lambda module, args: states.update(y=args[0]))
    with apply(model, Shift(layers=[2])):
        shifted = model(images()).logits
    handle.remove()
    torch.testing.assert_close(states["y"], expected)
    assert not torch.allclose(shifted, plain)


def test_a_block_without_such_a_stream_is_refused():
    """GPT-NeoX's feed-forward reads what came into the block; BERT norms behind, not in front."""
    for name, sentence in (("gpt-neox", "hears what came into the block"), ("bert", "has 0 norms")):
        family = FAMILIES[name]
        model = family.make()
        with pytest.raises(ValueError, match=sentence), apply(model, Shift(layers=[1])):
            model(**family.inputs())
