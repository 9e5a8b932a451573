"""HaloNet: the pitfalls of blocked local attention."""

import pytest
import torch

from regardant.compare.backbone_cost import counted
from regardant.core.operations import flops
from regardant.grid.halonet import HaloAttention, ReducingHaloAttention


def by_hand(layer, x):
    """One query after the other: its block, the halo around it, and what of that lies on the map."""
    height, width = x.shape[1:3]
    q, (k, v) = layer.to_q(x), layer.to_kv(x).split([layer.dim, layer.to_kv.out_features - layer.dim], -1)
    stride, block, halo, far = layer.stride, layer.block, layer.halo, layer.block - 1 + layer.halo
    d = layer.dim // layer.heads
    out = torch.zeros(*q[:, ::stride, ::stride].shape[:3], v.shape[-1], dtype=x.dtype)
    for row in range(0, height, stride):
        for column in range(0, width, stride):
            top, left = row // block * block - halo, column // block * block - halo
            seen = [
                (y, z)
                for y in range(top, top + block + 2 * halo)
                for z in range(left, left + block + 2 * halo)
                if 0 <= y < height and 0 <= z < width
            ]
            for head in range(layer.heads):
                own = slice(head * d, (head + 1) * d)
                mine = q[0, row, column, own]
                logits = torch.stack(
                    [
                        mine @ k[0, y, z, own] * d**-0.5
                        + mine
                        @ (layer.position.rows[y - row + far] + layer.position.columns[z - column + far])
                        for y, z in seen
                    ]
                )
                e = v.shape[-1] // layer.heads
                values = torch.stack([v[0, y, z, head * e : (head + 1) * e] for y, z in seen])
                out[0, row // stride, column // stride, head * e : (head + 1) * e] = (
                    logits.softmax(0) @ values
                )
    return out


@pytest.mark.parametrize("size", [(4, 8), (5, 7), (2, 3)], ids=str)
def test_blocks_equal_every_query_by_itself(size):
    torch.manual_seed(0)
    layer = HaloAttention(4, 2, block=4, halo=1).double()
    x = torch.randn(1, *size, 4, dtype=torch.float64)
    assert (layer(x) - by_hand(layer, x)).abs().max() < 1e-12


@pytest.mark.parametrize("size", [(4, 8), (5, 7)], ids=str)
def test_pitfall_strided_queries_keep_their_places_on_the_map(size):
    torch.manual_seed(0)
    layer = ReducingHaloAttention(4, 2, block=4, halo=2, value_dim=6, stride=2).double()
    x = torch.randn(1, *size, 4, dtype=torch.float64)
    assert layer(x).shape == (1, -(-size[0] // 2), -(-size[1] // 2), 6)
    assert (layer(x) - by_hand(layer, x)).abs().max() < 1e-12
    assert (layer(x) - layer.reference(x)).abs().max() < 1e-12


def test_pitfall_what_lies_off_the_map_takes_no_weight():
    torch.manual_seed(0)
    layer = HaloAttention(4, 1, block=2, halo=1).double()
    with torch.no_grad():
        layer.to_kv.weight[4:] = torch.eye(4)
    # With values of one everywhere, the weights of what is seen sum to one, at the border too.
    assert torch.allclose(layer(torch.ones(1, 5, 3, 4).double()), torch.ones(1, 5, 3, 4).double(), atol=1e-12)


def test_pitfall_the_position_term_is_not_scaled():
    layer = HaloAttention(4, 1, block=2, halo=0).double()
    assert layer.position.scale == 1.0


def test_pitfall_a_stride_divides_its_block():
    with pytest.raises(ValueError, match="stride=2 does not divide block=3"):
        ReducingHaloAttention(4, 1, block=3, stride=2)


def test_parameters_stay_when_the_halo_grows():
    small, large = (HaloAttention(16, 2, block=8, halo=halo) for halo in (1, 7))
    weights = [
        sum(each.numel() for each in (layer.to_q.weight, layer.to_kv.weight)) for layer in (small, large)
    ]
    assert weights[0] == weights[1] == 3 * 16 * 16
    extra = sum(p.numel() for p in large.parameters()) - sum(p.numel() for p in small.parameters())
    assert extra == 2 * 2 * 6 * 8  # two tables, two sides, six more offsets, eight wide


def test_work_is_linear_in_the_area():
    layer = HaloAttention(16, 2).eval()
    with torch.no_grad():
        small, large = (flops(lambda side=side: layer(torch.zeros(1, side, side, 16))) for side in (32, 64))
    assert large == pytest.approx(4 * small, rel=1e-4)


def test_multiply_adds_of_the_network_are_linear_in_the_area():
    first, last = counted("halonet_h0", size=256), counted("halonet_h0", size=512)
    assert last.multiply_adds / first.multiply_adds == pytest.approx(4, rel=0.01)
