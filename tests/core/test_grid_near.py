"""The square around every position: logits, sums and their gradients against loops, and what is counted."""

import pytest
import torch

from regardant.core.grid_near import near_logits, near_real, near_sums
from regardant.core.operations import flops

CASES = [((1, 1), 1), ((1, 9), 1), ((7, 13), 1), ((9, 16), 2), ((3, 2), 4), ((4, 5), 0), ((17, 8), 1)]


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def steps(reach):
    return [(down, across) for down in range(-reach, reach + 1) for across in range(-reach, reach + 1)]


def plain(q, k, v, weights, size, reach):
    """Query by query and step by step."""
    height, width = size
    q, k, v, weights = (part.unflatten(2, size) for part in (q, k, v, weights))
    logits, sums = torch.zeros_like(weights), torch.zeros_like(v)
    for y in range(height):
        for x in range(width):
            for at, (down, across) in enumerate(steps(reach)):
                i, j = y + down, x + across
                if 0 <= i < height and 0 <= j < width:
                    logits[:, :, y, x, at] = (q[:, :, y, x] * k[:, :, i, j]).sum(-1)
                    sums[:, :, y, x] += weights[:, :, y, x, at, None] * v[:, :, i, j]
    return logits.flatten(2, 3), sums.flatten(2, 3)


@pytest.mark.parametrize(("size", "reach"), CASES, ids=str)
def test_logits_and_sums_equal_loops(size, reach):
    q, k, v = (drawn(2, 3, size[0] * size[1], 4, seed=seed) for seed in range(3))
    weights = drawn(2, 3, size[0] * size[1], (2 * reach + 1) ** 2, seed=3)
    logits, sums = plain(q, k, v, weights, size, reach)
    torch.testing.assert_close(near_logits(q, k, size, reach), logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(near_sums(weights, v, size), sums, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "reach"), [((3, 10), 1), ((2, 3), 2)], ids=str)
def test_gradients_are_right(size, reach):
    q, v = (drawn(1, 2, size[0] * size[1], 3, seed=seed).requires_grad_() for seed in range(2))
    weights = drawn(1, 2, size[0] * size[1], (2 * reach + 1) ** 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda *each: near_logits(*each, size, reach), (q, v), fast_mode=True)
    assert torch.autograd.gradcheck(lambda *each: near_sums(*each, size), (weights, v), fast_mode=True)


def test_what_is_real_is_what_meets_no_zero():
    ones = torch.ones(1, 1, 20, 1)
    assert torch.equal(near_logits(ones, ones, (5, 4), 1)[0, 0] > 0, near_real((5, 4), 1))
    # Corners see 4 of 9 positions, edges 6.
    assert near_real((5, 4), 1).sum(-1)[:4].tolist() == [4, 6, 6, 4]


def test_pairs_are_counted_that_there_are_and_not_those_of_tiles():
    q = torch.zeros(2, 3, 256, 5)
    assert flops(lambda: near_logits(q, q, (16, 16), 1)) == 2 * 2 * 256 * 3 * 5 * 9
    assert flops(lambda: near_sums(torch.zeros(2, 3, 256, 9), q, (16, 16))) == 2 * 2 * 256 * 3 * 5 * 9


def test_types_that_differ_are_brought_together():
    q, k = drawn(1, 1, 9, 2).bfloat16(), drawn(1, 1, 9, 2, seed=1).float()
    assert near_logits(q, k, (3, 3), 1).dtype is torch.float32


def test_gradients_come_back_under_autocast():
    q, k = (drawn(1, 1, 9, 2, seed=seed).float().requires_grad_() for seed in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        near_sums(near_logits(q, k, (3, 3), 1), k, (3, 3)).sum().backward()
    assert q.grad.dtype is torch.float32 and q.grad.isfinite().all() and k.grad.abs().max() > 0


def test_a_negative_reach_is_refused():
    q = torch.zeros(1, 1, 4, 1)
    with pytest.raises(ValueError, match="reach is -1, but it is at least 0"):
        near_logits(q, q, (2, 2), -1)
