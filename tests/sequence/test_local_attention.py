"""Local attention in chunks."""

import pytest
import torch

from regardant.core.pattern import Window
from regardant.sequence.local_attention import LocalAttention, NearChunks


def test_who_sees_whom():
    seen = NearChunks(2, 1).dense(7)
    expected = [
        "1111000", "1111000", "1111110", "1111110", "0011111", "0011111", "0000111",
    ]  # fmt: skip
    assert ["".join(map(str, row)) for row in seen.int().tolist()] == expected


def test_no_neighbours_are_blocks():
    torch.manual_seed(0)
    layer, x = LocalAttention(16, 2, window=3, back=0).double(), torch.randn(1, 8, 16, dtype=torch.float64)
    parts = [layer(x[:, at : at + 3]) for at in (0, 3, 6)]
    torch.testing.assert_close(layer(x), torch.cat(parts, dim=1), rtol=0, atol=1e-12)


def test_candidates_hold_every_key_that_is_seen():
    for back in (0, 1, 2):
        pattern, i = NearChunks(3, back), torch.arange(40)
        listed = pattern.candidates(i, 40)
        seen = pattern.dense(40)
        for row in range(40):
            assert set(seen[row].nonzero().flatten().tolist()) <= set(listed[row].tolist())


def test_another_pattern_holds_as_well():
    layer = LocalAttention(16, 2, window=4, pattern=Window(2))
    assert layer.pattern.dense(9).sum() == Window(2).dense(9).sum()


@pytest.mark.parametrize(
    ("own", "word"),
    [({"window": 0}, "size is 0"), ({"back": -1}, "back is -1"), ({"context_dim": 8}, "no cross")],
)
def test_bad_input(own, word):
    with pytest.raises(ValueError, match=word):
        LocalAttention(32, 4, **own)
