"""Logits by relative position: skewing against gathering."""

import pytest
import torch

from regardant.core import plan
from regardant.core.pattern import Blocks, Causal, Dilated, Padding, Window
from regardant.core.relative_logits import RelativeLogits, skewed


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gathered(q, table, i, j, origin):
    """q_i·E[j - i] with every E[j - i] written out."""
    at = (j - i[:, None] + origin).clamp(0, table.shape[1] - 1)
    return torch.einsum("bhid,hijd->bhij", q, table[:, at])


def test_skewing_by_hand():
    products = torch.tensor([[9, 8, 0, 1], [9, 2, 3, 9], [4, 5, 9, 9]])
    assert skewed(products, 2).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert skewed(torch.tensor([[1, 2, 3]]), 3).tolist() == [[1, 2, 3]]


def test_skewing_copies_nothing():
    products = drawn(2, 3, 8, 19)
    assert skewed(products, 12).untyped_storage().data_ptr() == products.untyped_storage().data_ptr()


@pytest.mark.parametrize(("rows", "origin"), [(1, 0), (5, 4), (9, 4), (40, 39), (79, 39)])
@pytest.mark.parametrize("block", [(0, 1, 0, 1), (3, 9, 0, 9), (0, 4, 20, 31), (30, 40, 2, 7), (7, 8, 0, 40)])
def test_a_block_is_what_gathering_gives(rows, origin, block):
    q, table = drawn(2, 3, 40, 4), drawn(3, rows, 4, seed=1)
    i, j = torch.arange(*block[:2]), torch.arange(*block[2:])
    found = RelativeLogits(q, table, origin=origin).block(i, j)
    right = gathered(q[:, :, i], table, i, j, origin)
    if 0 < origin == rows - 1:  # a table that looks back only
        found, right = (each * (j <= i[:, None]) for each in (found, right))
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


def test_scattered_positions_and_an_offset():
    q, table = drawn(2, 3, 6, 4), drawn(3, 9, 4, seed=1)
    logits = RelativeLogits(q, table, origin=7, offset=10)
    for i, j in (([11, 14], [3, 9, 12]), ([12, 13, 14], [5, 6, 7, 8])):
        i, j = torch.tensor(i), torch.tensor(j)
        torch.testing.assert_close(
            logits.block(i, j), gathered(q[:, :, i - 10], table, i, j, 7), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(
    "pattern",
    [None, Causal(), Causal() & Window(20), Dilated(3, 5), Blocks(32),
     Causal() & Padding(torch.rand(2, 600, generator=torch.Generator().manual_seed(0)) < 0.8)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("gradients", [False, True])
def test_every_plan_adds_it(pattern, gradients):
    n = 600 if not gradients else 530
    q, k, v = (drawn(2, 2, n, 4, seed=seed) for seed in range(3))
    table = drawn(2, 17, 4, seed=3)
    for each in (q, k, v, table):
        each.requires_grad_(gradients)

    def run(attend, q):
        return attend(q, k, v, pattern, scale=0.5, bias=RelativeLogits(q, table, origin=13, scale=0.5))

    def plain(q, k, v, pattern, *, scale, bias):
        at = torch.arange(n)
        added = gathered(bias.q, bias.table, at, at, 13)
        mask = None if pattern is None else pattern.block(at, at, batch=2, heads=2)
        return plan.attend_rows(q, k, v, mask, scale=scale, bias=added)

    found, right = run(plan.attend, q), run(plain, q)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
    if gradients:
        weight = drawn(*found.shape, seed=5)
        ours = torch.autograd.grad((found * weight).sum(), [q, k, v, table])
        theirs = torch.autograd.grad((right * weight).sum(), [q, k, v, table])
        for one, other in zip(ours, theirs):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
