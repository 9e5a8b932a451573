"""Neighbourhood attention in its parts: logits, weights, values, and their transposes."""

from math import prod

import pytest
import torch

from regardant.core.grid_pattern import Neighborhood
from regardant.core.neighborhood_unfused import neighbor_logits, neighbor_tiles, neighbor_values

CPU = torch.device("cpu")
CASES = [
    ((9,), (3,), (2,), (False,)),
    ((1,), (5,), (3,), (False,)),
    ((23,), (4,), (1,), (True,)),
    ((7, 13), (3, 5), (1, 2), (False, False)),
    ((7, 8), (5, 3), (3, 1), (False, True)),
    ((1, 6), (7, 3), (2, 2), (True, False)),
    ((3, 4, 5), (3, 1, 3), (1, 1, 2), (False, True, False)),
    ((5, 6, 7), (3, 3, 5), (1, 2, 1), (True, False, False)),
]  # fmt: skip


def bound(size, kernel, dilation, causal):
    return Neighborhood(kernel, dilation=dilation, is_causal=causal).on(*size)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES)
def test_neighbours_are_those_of_the_pattern_each_once(case):
    near, n = bound(*case), prod(case[0])
    found = neighbor_tiles(near, CPU).neighbors()
    counts = torch.zeros(n, n + 1, dtype=torch.long)
    counts.scatter_add_(1, torch.where(found >= 0, found, n), torch.ones_like(found))
    assert torch.equal(counts[:, :n], near.dense(n).long())


def test_neighbours_come_in_the_order_of_the_grid_and_a_causal_axis_keeps_its_places():
    tiles = neighbor_tiles(bound((4, 4), (3, 3), (1, 1), (False, False)), CPU)
    assert tiles.neighbors()[0].tolist() == tiles.neighbors()[5].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    causal = neighbor_tiles(bound((5,), (3,), (1,), (True,)), CPU)
    assert causal.neighbors().tolist() == [[-1, -1, 0], [-1, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_pairs_and_sums_are_the_dense_products_and_so_are_their_gradients(case, kv_heads):
    near, n = bound(*case), prod(case[0])
    tiles, mask = neighbor_tiles(near, CPU), near.dense(n)
    q, (k, v) = drawn(2, 4, n, 3), drawn(2, 2, kv_heads, n, 3, seed=1)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    at, real = tiles.neighbors(), tiles.neighbors() >= 0
    times = 4 // kv_heads
    dense = q @ k.repeat_interleave(times, 1).mT
    compact = dense.gather(-1, at.clamp(min=0).expand(2, 4, -1, -1))
    logits = neighbor_logits(q, k, tiles)
    torch.testing.assert_close(logits * real, compact * real, rtol=0, atol=1e-9)
    weights = logits.masked_fill(~real, -torch.inf).softmax(-1)
    out = neighbor_values(weights, v, tiles)
    plain = dense.masked_fill(~mask, -torch.inf).softmax(-1) @ v.repeat_interleave(times, 1)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-9)
    direction = torch.randn_like(out)
    ours = torch.autograd.grad((out * direction).sum(), (q, k, v))
    theirs = torch.autograd.grad((plain * direction).sum(), (q, k, v))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_what_a_key_gives_comes_back_from_those_who_see_it():
    """Near a border more queries see a key than keys see a query: the transpose must count them all."""
    near = bound((7,), (3,), (1,), (False,))
    tiles, v = neighbor_tiles(near, CPU), torch.zeros(1, 1, 7, 1, dtype=torch.float64, requires_grad=True)
    neighbor_values(torch.ones(1, 1, 7, 3, dtype=torch.float64), v, tiles).sum().backward()
    assert v.grad.flatten().tolist() == [2, 3, 4, 3, 4, 3, 2]


@pytest.mark.parametrize(("size", "kernel"), [((4096,), 13), ((64, 64), 7), ((16, 16, 16), 5)])
def test_computed_pairs_are_the_wanted_ones_times_the_waste_of_the_halo(size, kernel):
    rank = len(size)
    tiles = neighbor_tiles(bound(size, (kernel,) * rank, (1,) * rank, (False,) * rank), CPU)
    side, width = (round(x.shape[1] ** (1 / rank)) for x in (tiles.rows, tiles.keys))
    assert width == side + kernel - 1
    wanted = prod(size) * kernel**rank
    rounded = prod(-(-length // side) * side / length for length in size)  # tiles that stick out
    assert tiles.pairs / wanted == pytest.approx(rounded * ((side + kernel - 1) / kernel) ** rank)
