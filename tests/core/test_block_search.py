"""The search for blocks of keys: against plain lists, causal, exact where there is little; attention to what
was gathered."""

from __future__ import annotations

import math

import pytest
import torch

from regardant.core.block_search import attend_gathered, gather_keys, search_blocks


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plainly(q, k, stop, *, keep, key_block, start, places, representative):
    """One head, one block of queries, with lists."""
    count = max(0, math.ceil((stop - start) / key_block))
    if count <= keep:
        return list(range(count))
    nodes = [(count * i // keep, count * (i + 1) // keep) for i in range(keep)]
    while max(end - begin for begin, end in nodes) > 1:
        halves = []
        for begin, end in nodes:
            middle = begin + (end - begin) // 2
            halves += [half for half in ((begin, middle), (middle, end)) if half[0] < half[1]]

        def score(node):
            block = node[0] + (node[1] - node[0]) // 2 if representative == "middle" else node[0]
            keys = [start + block * key_block + step for step in range(key_block)]
            seen = [
                float(q[row] @ k[key])
                for row in range(len(q)) for key in keys
                if key < stop and (places is None or key <= places[row])
            ]  # fmt: skip
            return max(seen, default=-1e300)

        nodes = sorted(sorted(halves, key=score, reverse=True)[:keep])
    return sorted(begin for begin, _ in nodes)


@pytest.mark.parametrize("representative", ["middle", "first"])
@pytest.mark.parametrize(("keep", "key_block", "start", "rows"), [(4, 2, 0, 8), (5, 3, 2, 4), (3, 1, 1, 1)])
def test_pitfall_splits_of_any_size_as_with_lists(representative, keep, key_block, start, rows):
    """Numbers of blocks that are no power of two, of which nodes keep their sizes."""
    n = 61
    blocks = -(-n // rows)
    k = drawn(1, 1, n, 6)
    q = drawn(1, 1, blocks, rows, 6, seed=1)
    places = torch.arange(blocks * rows).view(blocks, rows).clamp(max=n - 1)
    stop = (places[:, -1] - 2).clamp(min=0)
    given = dict(keep=keep, key_block=key_block, start=start, representative=representative)
    found = search_blocks(q, k, stop, places=places, **given)
    for block in range(blocks):
        expected = plainly(q[0, 0, block], k[0, 0], int(stop[block]), places=places[block].tolist(), **given)
        here = [each for each in found.blocks[0, 0, block].tolist() if each >= 0]
        assert sorted(here) == expected


def test_pitfall_nothing_is_found_twice_and_ties_find_as_many():
    n, keep = 256, 8
    even = torch.ones(1, 1, n, 4)
    found = search_blocks(even[:, :, None, -4:], even, torch.tensor([n]), keep=keep, key_block=2).blocks
    assert (found >= 0).all() and len(set(found.flatten().tolist())) == keep


def test_pitfall_what_lies_ahead_pushes_nothing_out():
    """Keys behind the first query that score high count for later queries alone; none for a block of one."""
    n = 128
    k = drawn(1, 1, n, 4)
    q = drawn(1, 1, 4, 32, 4, seed=1)
    places = torch.arange(n).view(4, 32)
    stop = places[:, -1] + 1
    before = search_blocks(q, k, stop, keep=4, key_block=2, places=places).blocks
    later = k.clone()
    later[:, :, 96:] = 50 * drawn(1, 1, 32, 4, seed=2)
    after = search_blocks(q, later, stop, keep=4, key_block=2, places=places).blocks
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    alone = search_blocks(q[:, :, 3:, :1], later, stop[3:], keep=4, key_block=2, places=places[3:, :1]).blocks
    same = search_blocks(q[:, :, 3:, :1], k, stop[3:], keep=4, key_block=2, places=places[3:, :1]).blocks
    assert torch.equal(alone, same)


def test_heads_choose_together_as_one_of_more_queries():
    k, q = drawn(2, 2, 90, 4), drawn(2, 6, 3, 5, 4, seed=1)
    stop = torch.tensor([40, 70, 90])
    together = search_blocks(q, k, stop, keep=6, key_block=2, shared=True).blocks
    stacked = q.view(2, 2, 3, 3, 5, 4).transpose(2, 3).flatten(3, 4)
    assert torch.equal(together, search_blocks(stacked, k, stop, keep=6, key_block=2).blocks)


def test_products_grow_with_the_logarithm():
    def products(n):
        q = torch.zeros(1, 1, n // 32, 32, 2)
        stop = torch.arange(32, n + 1, 32)
        return search_blocks(q, torch.zeros(1, 1, n, 2), stop, keep=46, key_block=2).products / n

    found = [products(n) for n in (1024, 4096, 16384)]
    assert math.log(found[2] / found[0]) / math.log(16) < 0.35


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_to_gathered_keys(heads):
    """Choices for heads that share keys, or for each; the last block cut short; rows that see none."""
    b, h, g, m, n, rows = 2, 4, 2, 11, 13, 4
    if heads < g:
        heads = g
    q, k, v = drawn(b, h, m, 5), drawn(b, g, n, 5, seed=1), drawn(b, g, n, 3, seed=2)
    at = torch.stack(
        [torch.randperm(n, generator=torch.Generator().manual_seed(i))[:6] for i in range(b * heads * 3)]
    )
    at = at.view(b, heads, 3, 6)
    at[..., -1] = -1
    sees = torch.rand(b, heads, 3, rows, 6, generator=torch.Generator().manual_seed(5)) < 0.7
    sees[:, :, 1, 2] = False
    found = attend_gathered(q, k, v, at, sees, scale=0.4)
    mask = torch.zeros(b, heads, 12, n, dtype=torch.bool)
    for sample, head, block, row, place in (sees & (at >= 0)[..., None, :]).nonzero().tolist():
        mask[sample, head, block * rows + row, at[sample, head, block, place]] = True
    mask = mask[:, :, :m].repeat_interleave(h // heads, dim=1)
    logits = q @ k.repeat_interleave(2, 1).mT * 0.4
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0)
    torch.testing.assert_close(found, weights @ v.repeat_interleave(2, 1), atol=1e-9, rtol=0)
    assert (found[:, :, 6] == 0).all()


def test_gathered_rows_are_those_of_the_shared_head():
    x = drawn(2, 2, 5, 3)
    at = torch.tensor([[[[4, 0]], [[1, 1]], [[2, 3]], [[0, 0]]]]).expand(2, -1, -1, -1)
    found = gather_keys(x, at)
    for head in range(4):
        assert torch.equal(found[:, head, 0], x[:, head // 2][:, at[0, head, 0]])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(keep=0, key_block=1), "at least 1 block"),
        (dict(keep=1, key_block=0), "at least 1 key"),
        (dict(keep=1, key_block=1, representative="last"), "no representative is called"),
    ],
)
def test_wrong_input_is_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        search_blocks(torch.zeros(1, 1, 1, 1, 2), torch.zeros(1, 1, 4, 2), torch.tensor([4]), **given)
