"""Maps cut into groups: every pattern's pairs and no others, at sizes that fit and sizes that do not."""

from itertools import product

import pytest
import torch

from regardant.core.grid_groups import (
    blocks_with_halo,
    groups_of,
    real_with_halo,
    rectangle_offsets,
)
from regardant.core.grid_pattern import Axial, Circle, Dilated2d, Halo, Stripe, Window2d

SIZES = [(1, 1), (7, 13), (12, 10), (5, 3), (8, 8)]
PATTERNS = [
    Window2d(4), Window2d((3, 5)), Window2d(4, shift=2), Window2d((4, 3), shift=(1, 2)), Window2d(20),
    Dilated2d(3), Dilated2d((2, 4)), Stripe(2), Stripe(3, axis=1), Axial(0), Axial(1), None,
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_groups_meet_whom_the_pattern_allows(pattern, size):
    count = size[0] * size[1]
    bound = None if pattern is None else pattern.on(*size)
    groups = groups_of(bound, size)
    at = torch.arange(1, count + 1).view(1, *size, 1)
    parts = groups.cut(at)
    assert torch.equal(groups.join(parts), at)
    mask = groups.mask()
    mask = torch.ones(len(parts), groups.positions, groups.positions) > 0 if mask is None else mask
    assert mask.any(-1).all()
    met = torch.zeros(count + 1, count + 1, dtype=torch.bool)
    for members, seen in zip(parts[..., 0], mask):
        met[members[:, None].expand_as(seen)[seen], members[None].expand_as(seen)[seen]] = True
    wanted = torch.ones(count, count, dtype=torch.bool) if bound is None else bound.dense(count)
    assert torch.equal(met[1:, 1:], wanted)


def test_what_fits_needs_no_mask():
    assert groups_of(Window2d(4).on(8, 12)).mask() is None
    assert groups_of(Dilated2d((2, 3)).on(8, 12)).mask() is None
    assert groups_of(Window2d(4, shift=2).on(8, 12)).mask() is not None


def test_the_members_of_a_strided_group_stand_a_stride_apart():
    groups = groups_of(Dilated2d((2, 3)).on(4, 6))
    assert groups.step == (2, 3) and groups.cell == (2, 2)
    parts = groups.cut(torch.arange(24).view(1, 4, 6, 1))
    assert parts[1, :, 0].tolist() == [1, 4, 13, 16]


def test_offsets_are_key_minus_query():
    rows, columns = rectangle_offsets((2, 2), (2, 3), (-1, 0))
    for query, key in product(range(4), range(6)):
        assert rows[query, key] == key // 3 - 1 - query // 2
        assert columns[query, key] == key % 3 - query % 2


@pytest.mark.parametrize("size", [(8, 12), (7, 13), (3, 2)], ids=str)
def test_blocks_with_their_halo_hold_what_the_pattern_allows(size):
    block, halo = 4, 2
    count = size[0] * size[1]
    at = torch.arange(1, count + 1).view(1, *size, 1).double()
    keys = blocks_with_halo(at, (block, block), (halo, halo))[..., 0].long()
    real = real_with_halo(size, (block, block), (halo, halo))
    assert torch.equal(keys > 0, real)
    padded = torch.nn.functional.pad(at, (0, 0, 0, -size[1] % block, 0, -size[0] % block))
    queries = groups_of(Window2d(block).on(*padded.shape[1:3])).cut(padded)[..., 0].long()
    met = torch.zeros(count + 1, count + 1, dtype=torch.bool)
    for mine, others in zip(queries, keys):
        met[mine[:, None], others[None]] = True
    assert torch.equal(met[1:, 1:], Halo(block, halo).on(*size).dense(count))


def test_patterns_without_groups_are_refused():
    with pytest.raises(ValueError, match="groups are made by Window2d"):
        groups_of(Circle(2).on(4, 4))
    with pytest.raises(ValueError, match="size must say how large"):
        groups_of(None)
    with pytest.raises(ValueError, match="stride is \\(2, 0\\)"):
        Dilated2d((2, 0))
