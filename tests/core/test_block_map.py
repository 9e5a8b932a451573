"""Figures of attention block by block, against the whole map."""

from __future__ import annotations

import pytest
import torch

from regardant.core import block_map as under_test
from regardant.core.block_map import (
    block_map,
    blocks_each,
    densest_blocks,
    places_of_blocks,
    pooled_by_block,
)
from regardant.core.block_search import attend_gathered


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_map(q, k, scale):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    n = q.shape[2]
    logits = (q @ k.mT * scale).masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf)
    return logits.softmax(-1)


@pytest.mark.parametrize("length", [1, 7, 16, 23])
@pytest.mark.parametrize("pairs", [1, 2**22])
def test_maxima_and_mass_of_tiles_are_those_of_the_whole_map(length, pairs, monkeypatch):
    monkeypatch.setattr(under_test, "PAIRS", pairs)
    q, k = drawn(2, 4, length, 8), drawn(2, 2, length, 8, seed=1)
    weights = whole_map(q, k, 0.4)
    maxima = block_map(q, k, block=5, scale=0.4)
    mass = block_map(q, k, block=5, scale=0.4, of="mass")
    count = -(-length // 5)
    assert maxima.shape == (2, 4, count, count)
    for row in range(count):
        for column in range(count):
            tile = weights[:, :, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
            torch.testing.assert_close(maxima[:, :, row, column], tile.amax((2, 3)), atol=1e-12, rtol=0)
            torch.testing.assert_close(mass[:, :, row, column], tile.sum((2, 3)), atol=1e-12, rtol=0)
    for of in ("maxima", "mass"):
        found = block_map(q, k, block=5, scale=0.4, of=of, by_query=True)
        columns = [weights[:, :, :, 5 * column : 5 * column + 5] for column in range(count)]
        expected = [each.amax(3) if of == "maxima" else each.sum(3) for each in columns]
        torch.testing.assert_close(found, torch.stack(expected, dim=3), atol=1e-12, rtol=0)
        assert found.shape == (2, 4, length, count)


def test_no_map_is_ever_whole(monkeypatch):
    monkeypatch.setattr(under_test, "PAIRS", 2 * 64 * 8)
    largest, real = [], torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda x, *rest: (largest.append(x.numel()), real(x, *rest))[1]
    )
    block_map(drawn(1, 2, 64, 4), drawn(1, 2, 64, 4), block=8, scale=1.0)
    assert max(largest) <= 2 * 64 * 8


@pytest.mark.parametrize("how", ["mean", "max", "min"])
def test_the_last_block_is_pooled_over_the_tokens_that_it_has(how):
    x = drawn(1, 2, 11, 3) - 5
    found = pooled_by_block(x, 4, how)
    for number, part in enumerate(x.split(4, dim=2)):
        expected = {"mean": part.mean(2), "max": part.amax(2), "min": part.amin(2)}[how]
        torch.testing.assert_close(found[:, :, number], expected)


def test_a_row_keeps_its_own_block_and_the_best_as_many_as_every_other():
    scores = torch.tensor([[9.0, 0, 0, 0], [1, 0, 5, 5], [1, 2, 0, 9], [4, 1, 4, 0]])
    found = densest_blocks(scores, 0.75, block=3)
    assert found.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]
    assert densest_blocks(scores, 1.0, block=3).equal(torch.ones(4, 4).tril().bool())
    with pytest.raises(ValueError, match="density is 0"):
        densest_blocks(scores, 0, block=3)


def test_queries_that_choose_for_themselves_keep_the_block_in_which_they_stand():
    scores = torch.tensor([[9.0, 0, 0], [0, 5, 5], [0, 5, 5], [3, 0, 5], [1, 2, 0]])
    found = densest_blocks(scores, 0.9, block=2)
    assert found.int().tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_share_of_the_causal_map_is_the_density_rounded_down(density):
    count = 200
    found = densest_blocks(drawn(count, count), density, block=1)
    assert int(found[-1].sum()) == blocks_each(count, density)
    assert float(found.sum()) / (count * (count + 1) / 2) == pytest.approx(density, abs=0.01)


@pytest.mark.parametrize("rows", [4, 14])
def test_attention_over_chosen_blocks_is_the_masked_one(rows):
    n, block = 14, 4
    q, k, v = drawn(2, 4, n, 8), drawn(2, 2, n, 8, seed=1), drawn(2, 2, n, 8, seed=2)
    chosen = densest_blocks(drawn(2, 4, rows, 4, seed=3), 0.8, block=block)
    at, sees = places_of_blocks(chosen, block=block, length=n)
    found = attend_gathered(q, k, v, at, sees, scale=0.3)
    by_query = chosen.repeat_interleave(block if rows == 4 else 1, 2)
    mask = by_query.repeat_interleave(block, 3)[:, :, :n, :n]
    mask = mask & torch.ones(n, n).tril().bool()
    keys, values = (x.repeat_interleave(2, dim=1) for x in (k, v))
    weights = (q @ keys.mT * 0.3).masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(found, weights @ values, atol=1e-12, rtol=0)
