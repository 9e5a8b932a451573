"""FocalNet: the paper's counts, both ways to norm, and released weights."""

import pytest
import torch

from regardant.backbone.focalnet import FocalNet
from regardant.backbone.kit.official import translate
from regardant.compare.backbone_cost import counted

PAPER = {
    "focalnet_tiny_srf": (28.4e6, 4.4e9),
    "focalnet_tiny_lrf": (28.6e6, 4.5e9),
    "focalnet_small_srf": (49.9e6, 8.6e9),
    "focalnet_small_lrf": (50.3e6, 8.7e9),
    "focalnet_base_srf": (88.1e6, 15.3e9),
    "focalnet_base_lrf": (88.7e6, 15.4e9),
}
LARGE = {
    "focalnet_large_fl3": 207e6, "focalnet_large_fl4": 207e6, "focalnet_xlarge_fl3": 366e6,
    "focalnet_xlarge_fl4": 366e6, "focalnet_huge_fl3": 687e6, "focalnet_huge_fl4": 689e6,
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_counts_are_the_papers(name):
    parameters, multiply_adds = PAPER[name]
    found = counted(name)
    assert found.parameters == pytest.approx(parameters, rel=0.01)
    assert found.multiply_adds == pytest.approx(multiply_adds, rel=0.01)


@pytest.mark.parametrize("name", LARGE)
def test_the_large_models_have_the_released_number_of_parameters(name):
    with torch.device("meta"):
        made = FocalNet(**FocalNet.variant(name))
    assert sum(each.numel() for each in made.parameters()) == pytest.approx(LARGE[name], rel=0.01)


@torch.no_grad()
def test_pitfall_large_models_begin_near_the_identity():
    """Layer scale: what a branch adds is small until it has learned."""
    config = dict(width=8, depths=(2,), classes=2, features_only=True, normed="after")
    x = torch.randn(1, 3, 16, 16)
    scaled, whole = FocalNet(**config, scale=1e-4).eval(), FocalNet(**config).eval()
    for model, least, most in ((scaled, 0.0, 1e-2), (whole, 0.1, float("inf"))):
        before = model.stem(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        moved = float((model(x)[0] - before).abs().max())
        assert least <= moved <= most


def test_norms_stand_where_they_were_asked_for():
    after = FocalNet(width=8, depths=(1,), classes=2, normed="after", scale=0.5)
    block = after.stages[0].layers[0]
    assert isinstance(block.mix.norm, torch.nn.Identity) and len(block.mix.branch) == 2
    before = FocalNet(width=8, depths=(1,), classes=2).stages[0].layers[0]
    assert isinstance(before.mix.norm, torch.nn.LayerNorm)
    with pytest.raises(ValueError, match="normed"):
        FocalNet(width=8, depths=(1,), normed="around")


def test_a_checkpoint_of_another_variant_is_told_by_its_first_differences():
    model = FocalNet(**FocalNet.small[0])
    with pytest.raises(ValueError) as said:
        model.load_official({"patch_embed.proj.weight": torch.zeros(16, 3, 4, 4)})
    assert "stem.0.weight is (16, 3, 4, 4) there and (8, 3, 4, 4) here" in str(said.value)


def test_released_names_are_ours_in_both_orders():
    for config, wanted in (
        ({}, "stages.0.layers.0.mix.branch.contexts.1.weight"),
        (dict(normed="after"), "stages.0.layers.0.mix.branch.0.contexts.1.weight"),
    ):
        model = FocalNet(width=8, depths=(1, 1), classes=2, **config)
        key = "layers.0.blocks.0.modulation.focal_layers.1.0.weight"
        assert list(translate({key: torch.zeros(1)}, model.official)) == [wanted]
