"""ConViT: the counts, how it begins, where the class token joins, and what can be read of it."""

import pytest
import torch

from regardant.backbone.convit import ConViT
from regardant.compare.backbone_cost import counted
from regardant.core.record import Record
from regardant.grid.convit import GatedPositionalAttention

# Parameters of the released models, which have a constant more for the scores of each gated head, and
# billions of their multiply-adds, all products counted.
RELEASED = {
    "convit_tiny": (5_710_512, 1.25),
    "convit_small": (27_777_322, 5.75),
    "convit_base": (86_540_040, 17.5),
}


@pytest.mark.parametrize("name", RELEASED)
def test_counts_are_those_of_the_released_models(name):
    found, (parameters, billions) = counted(name), RELEASED[name]
    assert found.parameters == parameters - 10 * ConViT.variant(name)["heads"]
    assert found.multiply_adds / 1e9 == pytest.approx(billions, rel=0.01)


@torch.no_grad()
def test_pitfall_it_begins_local_whatever_the_network_around_begins_with():
    model = ConViT(**ConViT.small[0])
    for layer in model.gated_layers:
        attention = layer.mix.branch
        assert torch.equal(attention.to_qkv.weight[16:], torch.eye(8))
        assert attention.position[:, 2].tolist() == [-1.0] * 4
        assert attention.to_qkv.weight[:16].abs().max() < 0.2
    assert not torch.equal(model.layers[2].mix.branch.to_qkv.weight[16:], torch.eye(8))


@torch.no_grad()
def test_pitfall_the_class_token_joins_behind_the_gated_layers():
    model, seen = ConViT(**ConViT.small[0]).eval(), []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda layer, given: seen.append(tuple(given[0].shape)))
    model(torch.randn(1, 3, 32, 24))
    assert seen == [(1, 4, 3, 8), (1, 4, 3, 8), (1, 13, 8)]
    assert [isinstance(layer.mix.branch, GatedPositionalAttention) for layer in model.layers] == [
        True, True, False,
    ]  # fmt: skip


@torch.no_grad()
def test_without_gated_layers_the_class_token_is_there_from_the_start():
    model, images = ConViT(**ConViT.small[1]).eval(), torch.randn(2, 1, 16, 16)
    tokens, size = model.tokens(images, record=Record(), plainly=False)
    x = model.positions(model.stem(images.permute(0, 2, 3, 1))).flatten(1, 2)
    x = torch.cat([model.class_token.expand(2, 1, -1), x], dim=1)
    for layer in model.layers:
        x = layer(x, record=Record())
    assert tuple(size) == (4, 4)
    torch.testing.assert_close(tokens, model.norm(x))


@torch.no_grad()
def test_gates_and_distances_of_every_gated_head():
    model = ConViT(**ConViT.small[0]).double().eval()
    model.layers[1].mix.branch.gate[2] = -3.0
    gates = model.gates()
    assert gates.shape == (2, 4) and gates[1, 2].item() == pytest.approx(0.0474259)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = model.distances(images)
    # The second layer's, from what the first gives.
    x = model.positions(model.stem(images.permute(0, 2, 3, 1)))
    x = model.layers[0](x, record=Record())
    second = model.layers[1].mix
    torch.testing.assert_close(found[1], second.branch.distances(second.norm(x)))


@torch.no_grad()
def test_released_names_are_taken_over_and_the_constant_of_the_scores_is_left_out():
    model = ConViT(**ConViT.small[0])
    dim, heads = 8, 4
    state = {
        "cls_token": torch.randn(1, 1, dim),
        "pos_embed": torch.randn(1, 16, dim),
        "patch_embed.proj.weight": torch.randn(dim, 3, 8, 8),
        "patch_embed.proj.bias": torch.randn(dim),
        "norm.weight": torch.randn(dim),
        "norm.bias": torch.randn(dim),
        "head.weight": torch.randn(3, dim),
        "head.bias": torch.randn(3),
    }
    for layer in range(3):
        own = {"attn.qk.weight": (2 * dim, dim), "attn.v.weight": (dim, dim), "attn.gating_param": (heads,)}
        own |= {"attn.pos_proj.weight": (heads, 3), "attn.pos_proj.bias": (heads,)}
        shapes = own if layer < 2 else {"attn.qkv.weight": (3 * dim, dim)}
        shapes |= {"attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)}
        shapes |= {f"norm{each}.{name}": (dim,) for each in (1, 2) for name in ("weight", "bias")}
        shapes |= {"mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,)}
        shapes |= {"mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,)}
        state |= {f"blocks.{layer}.{name}": torch.randn(shape) for name, shape in shapes.items()}
    model.load_official(state)
    assert torch.equal(model.positions.table[1, 2], state["pos_embed"][0, 6])
    assert torch.equal(model.class_token, state["cls_token"][0, 0])
    assert torch.equal(model.layers[1].mix.branch.position, state["blocks.1.attn.pos_proj.weight"])
    with pytest.raises(ValueError, match="the checkpoint is of another variant"):
        ConViT(**ConViT.small[0] | {"gated": 1}).load_official(state)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"gated": 3}, "gated is 3 of depth=3 layers"),
        ({"image": 4}, "image is 4"),
        ({"heads": 3}, "3"),
    ],
)
def test_bad_input_is_one_sentence(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        ConViT(**ConViT.small[0] | own)


def test_what_is_asked_of_gates_that_are_not_there_is_refused():
    model = ConViT(**ConViT.small[1])
    with pytest.raises(ValueError, match="gated is 0"):
        model.gates()
    with pytest.raises(ValueError, match="gated is 0"):
        model.distances(torch.zeros(1, 1, 16, 16))
