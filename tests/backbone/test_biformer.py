"""BiFormer: the released names, and what its stages read."""

import pytest
import torch

from regardant.backbone.biformer import BiFormer
from regardant.grid.biformer import AttentionBesideConvolution


def test_regions_read_are_1_4_16_and_then_all():
    with torch.device("meta"):
        made = BiFormer(**BiFormer.variant("biformer_tiny"), features_only=True)
    mixers = [stage.layers[0].mix.branch for stage in made.stages]
    assert [(each.regions, each.top) for each in mixers[:3]] == [(7, 1), (7, 4), (7, 16)]
    assert isinstance(mixers[3], AttentionBesideConvolution)
    assert [each.heads for each in mixers] == [2, 4, 8, 8]


def test_released_names_are_known():
    """One block of each kind by its released names: queries, keys and values of one layer are cut apart."""
    small = dict(width=8, depths=(1, 1), heads=(2, 4), top=(1, None), features_only=True)
    model = BiFormer(**small)
    state, own = {}, model.state_dict()
    for name in own:
        released = name.replace("stem.", "downsample_layers.0.")
        for ours, theirs in (
            ("stages.1.entry.", "downsample_layers.1."), (".layers.", "."),
            (".before.branch.", ".pos_embed."), (".mix.norm.", ".norm1."), (".feed.norm.", ".norm2."),
            (".mix.branch.local.convolution.", ".attn.lepe."),
            (".feed.branch.widen.", ".mlp.0."), (".feed.branch.narrow.", ".mlp.3."),
        ):  # fmt: skip
            released = released.replace(ours, theirs)
        released = released.replace("mix.branch.to_out", "attn.wo" if "stages.0" in name else "attn.proj")
        state[released.replace("mix.branch.to_qkv", "attn.qkv")] = torch.randn(own[name].shape)
    for kind in ("weight", "bias"):
        parts = [state.pop(f"stages.0.0.mix.branch.to_{part}.{kind}") for part in "qkv"]
        state[f"stages.0.0.attn.qkv.qkv.{kind}"] = torch.cat(parts)
    state |= {"norm.weight": torch.ones(16), "head.weight": torch.ones(1000, 16)}
    model.load_official(state)
    loaded = model.stages[0].layers[0].mix.branch
    assert torch.equal(loaded.to_k.weight, state["stages.0.0.attn.qkv.qkv.weight"][8:16])
    assert torch.equal(model.stages[1].layers[0].mix.branch.to_out.bias, state["stages.1.0.attn.proj.bias"])


def test_stages_need_one_of_each():
    with pytest.raises(ValueError, match="there are 2 depths, 2 heads and 4 in top"):
        BiFormer(width=8, depths=(1, 1), heads=(2, 2))
