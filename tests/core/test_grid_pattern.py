"""Patterns on grids: their definitions position by position, and what they tell of their shape."""

from itertools import product
from math import dist, prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regardant.core.grid_pattern import (
    Axial,
    Circle,
    CrissCross,
    Dilated2d,
    Halo,
    Neighborhood,
    Stripe,
    Window2d,
)
from regardant.core.pattern import PerHead, Reach

SIZES = [(1, 1), (1, 6), (5, 1), (7, 13), (8, 8), (5, 3)]


def along(n: int, kernel: int, dilation: int, causal: bool) -> list[set[int]]:
    """NATTEN's neighbours on one axis, for each position."""
    result = []
    for i in range(n):
        members = [j for j in range(n) if j % dilation == i % dilation]
        place = members.index(i)
        if causal:
            result.append(set(members[max(0, place - kernel + 1) : place + 1]))
        else:
            start = min(max(place - kernel // 2, 0), max(len(members) - kernel, 0))
            result.append(set(members[start : start + kernel]))
    return result


def relation(size, allows) -> torch.Tensor:
    places = list(product(*map(range, size)))
    return torch.tensor([[allows(query, key) for key in places] for query in places])


def assert_sound(pattern, n: int) -> None:
    """Reach, reaches, candidates, partition and causality say nothing that the mask denies."""
    i, seen = torch.arange(n), pattern.dense(n)
    apart, reach = i[:, None] - i, pattern.reach()
    assert not (seen & ~((apart <= reach.back) & (apart >= -reach.ahead))).any()
    for query, key, bound in zip(pattern.coordinates(i[:, None]), pattern.coordinates(i), pattern.reaches()):
        assert not (seen & ~((query - key <= bound.back) & (key - query <= bound.ahead))).any()
    if pattern.causal:
        assert not seen.triu(1).any()
    found = pattern.candidates(i, n)
    if found is not None:
        real = (found >= 0) & (found < n)
        count = torch.zeros(n, n, dtype=torch.int).scatter_add_(1, found.clamp(0, n - 1), real.int())
        assert count.max() <= 1 and (count[seen] == 1).all()
    around = pattern.around(i)
    if around is not None:
        for query, per_axis in zip(seen, zip(*around)):
            keys = query.nonzero().flatten()
            for coordinate, listed in zip(pattern.coordinates(keys), per_axis):
                assert torch.isin(coordinate, listed).all()
    groups = pattern.partition(n, torch.device("cpu"))
    if groups is not None:
        mask = torch.zeros(n, n, dtype=torch.bool)
        for which, row in enumerate(groups.order):
            row = row if groups.valid is None else row[groups.valid[which]]
            mask[row[:, None], row] = True
        assert torch.equal(mask, seen)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_neighborhood_on_one_axis_is_the_definition(kernel, dilation, causal):
    for n in range(1, 20):
        pattern = Neighborhood(kernel, dilation=dilation, is_causal=causal).on(n)
        expected = torch.tensor(
            [[j in near for j in range(n)] for near in along(n, kernel, dilation, causal)]
        )
        assert torch.equal(pattern.dense(n), expected), n
        assert_sound(pattern, n)


@st.composite
def neighborhoods(draw):
    rank = draw(st.integers(1, 3))
    axes = [
        draw(st.tuples(st.integers(1, top), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3), st.booleans()))
        for top in [(20,), (9, 9), (5, 5, 5)][rank - 1]
    ]
    return tuple(zip(*axes))


@settings(max_examples=60)
@given(neighborhoods())
def test_neighborhood_on_several_axes_is_the_product(case):
    size, kernel, dilation, causal = case
    pattern = Neighborhood(kernel, dilation=dilation, is_causal=causal).on(*size)
    near = [along(*facts) for facts in zip(size, kernel, dilation, causal)]
    expected = relation(size, lambda q, k: all(k[a] in near[a][q[a]] for a in range(len(size))))
    assert torch.equal(pattern.dense(prod(size)), expected)
    assert_sound(pattern, prod(size))


def test_every_query_has_all_its_keys_when_nothing_is_causal():
    assert (Neighborhood(5).on(20).dense(20).sum(1) == 5).all()
    assert (Neighborhood((3, 5), dilation=(2, 1)).on(7, 9).dense(63).sum(1) == 15).all()


def test_causal_neighborhood_is_the_same_at_any_length():
    """What decoding needs: growing the sequence changes nothing for the queries that there were."""
    pattern = Neighborhood(3, dilation=2, is_causal=True)
    assert torch.equal(pattern.on(30).dense(12), pattern.on(12).dense(12))
    assert pattern.on(1).reach() == pattern.on(30).reach() == Reach(4, 0)
    assert pattern.on(9).causal and not Neighborhood(3).on(9).causal


GRID = {
    "Window2d": (Window2d(3), lambda q, k: q[0] // 3 == k[0] // 3 and q[1] // 3 == k[1] // 3),
    "Window2d shifted": (
        Window2d((4, 2), shift=(1, 1)),
        lambda q, k: (q[0] - 1) // 4 == (k[0] - 1) // 4 and (q[1] - 1) // 2 == (k[1] - 1) // 2,
    ),
    "Axial rows": (Axial(1), lambda q, k: q[0] == k[0]),
    "Axial columns": (Axial(0), lambda q, k: q[1] == k[1]),
    "Axial causal": (Axial(-1, is_causal=True), lambda q, k: q[0] == k[0] and k[1] <= q[1]),
    "CrissCross": (CrissCross(), lambda q, k: q[0] == k[0] or q[1] == k[1]),
    "Stripe rows": (Stripe(2, 0), lambda q, k: q[0] // 2 == k[0] // 2),
    "Stripe columns": (Stripe(3, 1), lambda q, k: q[1] // 3 == k[1] // 3),
    "Halo": (
        Halo(3, 1),
        lambda q, k: all(a // 3 * 3 - 1 <= b < a // 3 * 3 + 4 for a, b in zip(q, k)),
    ),
    "Circle": (Circle(2.3), lambda q, k: dist(q, k) <= 2.3),
    "Dilated2d": (Dilated2d(2), lambda q, k: (q[0] - k[0]) % 2 == 0 and (q[1] - k[1]) % 2 == 0),
    "Dilated2d by 3": (Dilated2d(3), lambda q, k: (q[0] - k[0]) % 3 == 0 and (q[1] - k[1]) % 3 == 0),
}


@pytest.mark.parametrize("name", GRID)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_members_are_their_definitions(name, size):
    pattern, allows = GRID[name]
    bound = pattern.on(*size)
    assert torch.equal(bound.dense(prod(size)), relation(size, allows))
    assert_sound(bound, prod(size))


@pytest.mark.parametrize("name", GRID)
def test_compositions_stay_sound(name):
    one = GRID[name][0]
    i = torch.arange(35)
    for other in (Neighborhood(3), CrissCross(), Circle(1)):
        for pattern in ((one & other).on(5, 7), (one | other).on(5, 7)):
            seen, found = pattern.dense(35), pattern.candidates(i, 35)
            first, second = one.on(5, 7).dense(35), other.on(5, 7).dense(35)
            assert torch.equal(seen, first & second) or torch.equal(seen, first | second)
            if found is not None:
                real = (found >= 0) & (found < 35)
                count = torch.zeros(35, 35, dtype=torch.int)
                count.scatter_add_(1, found.clamp(0, 34), real.int())
                assert count.max() <= 1 and (count[seen] == 1).all()


def test_axial_lives_on_any_number_of_axes():
    size = (2, 3, 4)
    for axis in (0, 1, 2):
        allows = relation(size, lambda q, k, axis=axis: all(q[a] == k[a] for a in range(3) if a != axis))
        assert torch.equal(Axial(axis).on(*size).dense(24), allows)
        assert_sound(Axial(axis, is_causal=True).on(*size), 24)


def test_criss_cross_counts_the_own_position_once():
    found = CrissCross().on(4, 5).candidates(torch.arange(20), 20)
    assert found.shape == (20, 4 + 5 - 1)
    assert all(len(set(row)) == 8 for row in found.tolist())


def test_positions_are_row_major():
    pattern = Axial().on(2, 3, 4)
    at = torch.arange(24)
    coordinates = pattern.coordinates(at)
    assert [axis[17].item() for axis in coordinates] == [1, 1, 1]
    assert torch.equal(pattern.flatten(coordinates), at)
    outside = [torch.tensor([2, 0, 0]), torch.tensor([0, -1, 0]), torch.tensor([0, 0, 4])]
    assert pattern.flatten(outside).tolist() == [-1, -1, -1]


def test_binding_remembers_and_takes_lists_all_the_same():
    assert Window2d(window=(2, 3)).on(4, 6) is Window2d(window=(2, 3)).on(4, 6)
    assert Window2d(window=[2, 3]).on(4, 6).reaches() == Window2d(window=(2, 3)).on(4, 6).reaches()


def test_binding_goes_through_compositions():
    pattern = PerHead([Axial(0), Axial(1) & ~Circle(1)]).on(3, 4)
    mask = pattern.dense(12, heads=2)
    assert torch.equal(mask[0], Axial(0).on(3, 4).dense(12))
    assert torch.equal(mask[1], Axial(1).on(3, 4).dense(12) & ~Circle(1).on(3, 4).dense(12))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: CrissCross().dense(4), r"CrissCross has no grid yet: call \.on\(height, width\) first"),
        (lambda: CrissCross().on(4), r"CrissCross lives on a grid of 2 axes, but the size given is \(4,\)"),
        (lambda: Neighborhood((3, 3)).on(4, 4, 4), "Neighborhood lives on a grid of 2 axes"),
        (lambda: Neighborhood((3, 3), dilation=(1, 1, 1)).on(4, 4).dense(16), "dilation is"),
        (lambda: Neighborhood(0), "kernel is 0, but it is at least 1"),
        (lambda: Neighborhood(3, dilation=(1, 0)), r"dilation is \(1, 0\)"),
        (lambda: Axial(2).on(4, 4), "axis is 2"),
        (lambda: CrissCross().on(0, 4), r"size is \(0, 4\)"),
        (lambda: Window2d(0), "window is 0"),
        (lambda: Window2d((2, 2, 2)), r"window is \(2, 2, 2\), but the grid has 2 axes"),
        (lambda: Stripe(0), "width is 0"),
        (lambda: Stripe(2, axis=2), "axis is 2"),
        (lambda: Halo(0), "block_size is 0"),
        (lambda: Halo(2, -1), "halo is -1"),
        (lambda: Circle(-1.0), "radius is -1.0"),
        (lambda: Dilated2d(0), "stride is 0"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
