"""InLine-PVT and InLine-Swin: layers by letter, what they merge by, and the names of released weights."""

import pytest
import torch

from regardant.backbone.inline_attention import InLinePVT, InLineSwin
from regardant.backbone.kit.official import by_key_minus_query, joined
from regardant.backbone.kit.stem import NeighborMerging
from regardant.core.grid_window import WindowAttention
from regardant.grid.inline_attention import InLineAttention


def test_letters_of_a_stage_are_its_mixers():
    made = InLineSwin(width=8, heads=(2,), layers=("ISH",), window=6, everywhere=4, classes=2)
    mixers = [layer.mix.branch for layer in made.stages[0].layers]
    assert [type(mixer) for mixer in mixers] == [InLineAttention, WindowAttention, WindowAttention]
    assert mixers[0].window == (4, 4)
    assert [mixer.shift for mixer in mixers[1:]] == [(0, 0), (3, 3)]


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("inline_swin_tiny", ["II", "II", "IIIIII", "SH"]),
        ("inline_swin_small", ["II", "II", "SH" * 9, "SH"]),
        ("inline_swin_base", ["II", "II", "II" + "SH" * 8, "SH"]),
    ],
)
def test_released_models_are_injective_in_their_first_stages(name, letters):
    assert list(InLineSwin.variant(name)["layers"]) == letters


@torch.no_grad()
def test_neighbours_follow_down_the_columns_and_zeros_fill_odd_sides():
    torch.manual_seed(0)
    merge = NeighborMerging(2, 3).double()
    x = torch.randn(1, 3, 4, 2, dtype=torch.float64)
    found = merge(x)
    assert found.shape == (1, 2, 2, 3)
    zero = torch.zeros(2, dtype=torch.float64)
    for row, squares in enumerate([(x[0, 0], x[0, 1]), (x[0, 2], zero.expand(4, 2))]):
        for column in range(2):
            upper, lower = squares
            left, right = 2 * column, 2 * column + 1
            four = torch.cat([upper[left], lower[left], upper[right], lower[right]])
            torch.testing.assert_close(found[0, row, column], merge.narrow(merge.norm(four)))
    assert merge.field(3, 4).relation.sum(1).tolist() == [4, 4, 2, 2]


def test_queries_and_keys_of_two_layers_are_joined_where_they_match():
    keys = [f"{place}.attn.{part}.bias" for place in ("block1", "head") for part in ("q", "kv")]
    state = {key: torch.full((1,), float(at)) for at, key in enumerate(keys)}
    found = joined(state, r"^block", parts=("q", "kv"), whole="qkv")
    assert {name: value.tolist() for name, value in found.items()} == {
        "block1.attn.qkv.bias": [0.0, 1.0], "head.attn.q.bias": [2.0], "head.attn.kv.bias": [3.0],
    }  # fmt: skip


def test_a_released_table_of_offsets_is_turned():
    # Windows of 2: offsets -1, 0, 1 along each axis, query minus key; two heads.
    table = torch.arange(18.0).unflatten(0, (9, 2))
    turned = by_key_minus_query(table)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            released = table[(-down + 1) * 3 + (-across + 1)]
            assert torch.equal(turned[:, down + 1, across + 1], released)


def test_official_keys_of_both_hosts_are_ours():
    made = InLinePVT(widths=(8,), heads=(2,), depths=(1,), expansions=(2,), image=8, classes=3)
    theirs = {
        "pos_embed1": torch.randn(1, 4, 8),
        "patch_embed1.proj.weight": torch.randn(8, 3, 4, 4), "patch_embed1.proj.bias": torch.randn(8),
        "patch_embed1.norm.weight": torch.randn(8), "patch_embed1.norm.bias": torch.randn(8),
        "head.weight": torch.randn(3, 8), "head.bias": torch.randn(3),
    }  # fmt: skip
    shapes = {
        "norm1": (8,), "norm2": (8,), "attn.q": (8, 8), "attn.kv": (16, 8), "attn.proj": (8, 8),
        "attn.residual.0": (8, 4, 1), "attn.residual.2": (72, 4, 1), "mlp.fc1": (16, 8), "mlp.fc2": (8, 16),
    }  # fmt: skip
    for name, shape in shapes.items():
        theirs[f"block1.0.{name}.weight"] = torch.randn(shape)
        theirs[f"block1.0.{name}.bias"] = torch.randn(shape[0])
    made.load_official(theirs)
    mixer = made.stages[0].layers[0].mix.branch
    assert torch.equal(mixer.to_qkv.weight[:8], theirs["block1.0.attn.q.weight"])
    assert torch.equal(mixer.to_qkv.weight[8:], theirs["block1.0.attn.kv.weight"])
    assert torch.equal(mixer.local.second.weight, theirs["block1.0.attn.residual.2.weight"])
    assert torch.equal(made.stages[0].entry[2].table[1, 0], theirs["pos_embed1"][0, 2])
