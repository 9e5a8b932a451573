"""Regions and how they are summarised."""

import pytest
import torch

from regardant.core.regions import pool, running_pool, summarise, summarise_running


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_pools_by_hand():
    x = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [5.0, 6.0]]])
    real = torch.tensor([[True, True, False]])
    assert pool(x, real, "max").tolist() == [[3.0, -2.0]]
    assert pool(x, real, "mean").tolist() == [[2.0, -3.0]]
    assert pool(x, None, "sum").tolist() == [[9.0, 0.0]]
    for how in ("max", "mean", "sum"):
        assert pool(x, ~torch.ones_like(real), how).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("how", ["max", "mean", "sum"])
@pytest.mark.parametrize("padded", [False, True])
def test_running_is_one_prefix_after_the_other(how, padded):
    q, k, v = drawn(2, 3, 7, 4), drawn(2, 3, 7, 4, seed=1), drawn(2, 3, 7, 4, seed=2)
    real = torch.rand(2, 1, 7, generator=torch.Generator().manual_seed(3)) < 0.5 if padded else None
    for end in range(1, 8):
        inside = None if real is None else real[..., :end]
        running = running_pool(q, real, how)[..., end - 1, :]
        torch.testing.assert_close(running, pool(q[..., :end, :], inside, how), rtol=0, atol=1e-12)
    keys, values = summarise_running(q, k, v, real, how=how, scale=0.5)
    assert keys[..., 0, :].abs().max() == 0 and values[..., 0, :].abs().max() == 0
    for at in range(1, 7):
        before = (rows[..., :at, :] for rows in (q, k, v))
        key, value = summarise(*before, None if real is None else real[..., :at], how=how, scale=0.5)
        torch.testing.assert_close(keys[..., at, :], key, rtol=0, atol=1e-12)
        torch.testing.assert_close(values[..., at, :], value, rtol=0, atol=1e-12)


def test_a_summary_by_hand():
    q, k, v = drawn(3, 4), drawn(3, 4, seed=1), drawn(3, 4, seed=2)
    key, value = summarise(q, k, v, None, how="mean", scale=0.3)
    torch.testing.assert_close(key, k.mean(0))
    torch.testing.assert_close(value, (k @ q.mean(0) * 0.3).softmax(0) @ v)
