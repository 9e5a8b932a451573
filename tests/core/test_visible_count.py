"""The number of keys that each query sees."""

import pytest
import torch

from regardant.core.pattern import Blocks, Causal, Dilated, Padding, PerHead, Prefix, Sink, Window
from regardant.core.visible_count import visible_count

REAL = torch.rand(3, 700, generator=torch.Generator().manual_seed(0)) < 0.6
PATTERNS = [
    None,
    Causal(),
    Padding(REAL),
    Padding(REAL[0]),
    Causal() & Padding(REAL),
    Causal() & Window(5),
    Causal() & Window(5) & Padding(REAL),
    Sink(2) | Window(4),
    Blocks(8),
    Prefix(torch.tensor([0, 3, 650])),
    PerHead([Window(3), Dilated(4, 3)]),
    ~Sink(1),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("queries", "keys", "offset"), [(1, 1, 0), (17, 17, 0), (600, 600, 0), (3, 40, 37)])
def test_the_count_is_the_sum_of_the_mask(pattern, queries, keys, offset):
    found = visible_count(pattern, queries, keys, batch=3, heads=2, offset=offset)
    if pattern is None:
        expected = torch.full((3, 2, queries), keys)
    else:
        i, j = torch.arange(offset, offset + queries), torch.arange(keys)
        mask = pattern.block(i, j, batch=3, heads=2).expand(3, 2, -1, -1)
        expected = mask.sum(-1)
    assert torch.equal(found.expand(3, 2, queries), expected)


def test_a_window_is_counted_within_its_reach():
    found = visible_count(Causal() & Window(16), 4, 10**9, offset=10**9 - 4)
    assert found.flatten().tolist() == [16] * 4
