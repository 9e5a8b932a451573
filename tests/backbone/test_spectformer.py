"""SpectFormer: how the paper counts, the layout of its residuals, and its head."""

import pytest
import torch
from torch import nn

from regardant.backbone.kit.stage import Block
from regardant.backbone.spectformer import ClassAttentionHead, HierarchicalSpectFormer, SpectFormer
from regardant.compare.variants import row
from regardant.core.operations import flops


@pytest.mark.parametrize("name", ["spectformer_h_small", "spectformer_h_base", "spectformer_h_large"])
def test_of_hierarchical_models_the_paper_leaves_out_the_products_of_attention(name):
    """Which take no weights: 2 · positions² · width a layer. Without them the counts are the paper's."""
    found, config = row(name), HierarchicalSpectFormer.variant(name)
    done = found.ours.multiply_adds
    for stage, positions in ((2, 14 * 14), (3, 7 * 7)):
        done -= 2 * positions**2 * config["widths"][stage] * config["depths"][stage]
    assert done == pytest.approx(found.paper.multiply_adds.value, abs=0.07e9)


@torch.no_grad()
def test_pitfall_the_two_layouts_of_residuals():
    shared = dict(dim=8, heads=2, layers="S", image=16, patch=4, classes=3)
    joint, split = (SpectFormer(**shared, residual=layout).double() for layout in ("joint", "split"))
    x = torch.randn(2, 4, 4, 8, dtype=torch.float64)
    layer = joint.layers[0]
    gate, norm, feed = layer.branch
    torch.testing.assert_close(layer(x), x + feed(norm(gate(layer.norm(x)))))
    layer = split.layers[0]
    assert isinstance(layer, Block)
    once = x + layer.mix.branch(layer.mix.norm(x))
    torch.testing.assert_close(layer(x), once + layer.feed.branch(layer.feed.norm(once)))


@torch.no_grad()
def test_the_head_asks_once_with_the_mean_and_hears_of_itself():
    head = ClassAttentionHead(8, 2, 16, 3, dense=True).double().eval()
    x = torch.randn(2, 3, 2, 8, dtype=torch.float64)
    tokens = x.flatten(1, 2)
    seen = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    normed = head.attend_norm(seen)
    q, (k, v) = head.to_q(normed[:, :1]), head.to_kv(normed).chunk(2, dim=-1)
    heard = []
    for at in (slice(4), slice(4, 8)):
        weights = (q[..., at] @ k[..., at].mT / 2).softmax(dim=-1)
        heard.append(weights @ v[..., at])
    asking = seen[:, :1] + head.to_out(torch.cat(heard, dim=-1))
    asking = asking + head.feed(head.feed_norm(asking))
    expected = head.classify(head.norm(asking))[:, 0]
    each = head.classify_each(head.norm(tokens))
    torch.testing.assert_close(head(x), expected + 0.5 * each.max(dim=1).values)
    head.classify_each = None
    torch.testing.assert_close(head(x), expected)


def test_released_queries_keys_and_values_are_put_together():
    config = dict(
        widths=(8, 12, 8, 8), heads=(1, 1, 2, 2), depths=(1, 1, 1, 1), stem=4, image=32, classes=3,
        expansions=(2, 2, 2, 2),
    )  # fmt: skip
    model = HierarchicalSpectFormer(**config)
    with pytest.raises(ValueError, match="the checkpoint is of another variant") as said:
        model.load_official(
            {"block3.0.attn.q.weight": torch.zeros(8, 8), "block3.0.attn.kv.weight": torch.ones(16, 8)}
        )
    assert "stages.2.layers.0.mix.branch.to_qkv.weight" not in str(said.value)


def test_a_spectral_stage_grows_as_its_map_and_attention_as_its_square():
    small, large = (torch.zeros(1, 3, side, side, device="meta") for side in (64, 128))
    with torch.device("meta"):
        models = [
            SpectFormer(dim=8, heads=2, layers=layers * 2, classes=2, image=64, patch=4) for layers in "SA"
        ]
    growth = [
        flops(lambda model=model: model(large)) / flops(lambda model=model: model(small)) for model in models
    ]
    assert growth[0] == pytest.approx(4, rel=0.05) and growth[1] > 6


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"layers": ""}, "layers is empty"),
        ({"layers": "SX"}, "no layer is called 'X'"),
        ({"residual": "both"}, "no residual is called 'both'"),
        ({"image": 2}, "image is 2"),
    ],
)
def test_bad_input_is_one_sentence(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        SpectFormer(**{"dim": 8, "heads": 2, "layers": "SA", "patch": 4} | own)


def test_hierarchical_kinds_are_one_a_stage():
    with pytest.raises(ValueError, match="kinds is 'SA', but it has a letter for each of 3 stages"):
        HierarchicalSpectFormer(widths=(8, 8, 8), heads=(1, 1, 1), depths=(1, 1, 1), stem=4, kinds="SA")
    assert isinstance(HierarchicalSpectFormer(**HierarchicalSpectFormer.small[0]).stem[1], nn.BatchNorm2d)
