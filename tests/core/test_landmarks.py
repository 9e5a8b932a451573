"""Landmarks in a text, and the softmax that they gate."""

import pytest
import torch

from regardant.core.landmarks import BlockSoftmax, grouped_softmax, insert_landmarks, is_landmark


def logits(*shape, seed=0):
    return 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def causal(n):
    return torch.ones(n, n, dtype=torch.bool).tril()


def test_landmarks_stand_behind_whole_blocks():
    tokens = torch.arange(1, 8)[None]
    assert insert_landmarks(tokens, block=3, landmark=0).tolist() == [[1, 2, 3, 0, 4, 5, 6, 0, 7]]
    assert insert_landmarks(tokens[:, :6], block=3, landmark=0).tolist() == [[1, 2, 3, 0, 4, 5, 6, 0]]
    assert insert_landmarks(tokens[:, :2], block=3, landmark=0).tolist() == [[1, 2]]
    assert is_landmark(9, block=3).nonzero().flatten().tolist() == [3, 7]


def test_a_hand_worked_row():
    """Blocks of two: tokens 0 1, landmark 2, tokens 3 4, landmark 5, token 6; the row of token 6."""
    s = torch.tensor([0.1, 0.7, -0.3, 1.2, 0.4, 0.9, -0.5], dtype=torch.float64)
    e = s.exp()
    total = e[6] + e[2] + e[5]
    right = [e[2] / total * e[0] / (e[0] + e[1]), e[2] / total * e[1] / (e[0] + e[1]), 0 * total]
    right += [
        e[5] / total * e[3] / (e[3] + e[4]),
        e[5] / total * e[4] / (e[3] + e[4]),
        0 * total,
        e[6] / total,
    ]
    seen = torch.ones(7, dtype=torch.bool)
    for found in (grouped_softmax(s, seen, is_landmark(7, block=2)), BlockSoftmax(2)(s, seen)):
        torch.testing.assert_close(found, torch.stack(right), rtol=0, atol=1e-14)


@pytest.mark.parametrize("n, block", [(1, 4), (5, 4), (23, 4), (24, 1), (9, 50)])
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_are_the_groups(n, block, padded):
    s, mask = logits(2, 3, n, n), causal(n)
    if padded:
        mask = mask & (torch.rand(2, 1, 1, n, generator=torch.Generator().manual_seed(2)) < 0.6)
    mask = mask.expand_as(s)
    s = s.masked_fill(~mask, -torch.inf).requires_grad_()
    fast, plain = BlockSoftmax(block)(s, mask), grouped_softmax(s, mask, is_landmark(n, block=block))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    weight = torch.randn_like(fast)
    ours, theirs = (torch.autograd.grad((each * weight).sum(), s)[0] for each in (fast, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_rows_sum_to_one_where_they_see_a_token_and_to_zero_elsewhere():
    mask = causal(17) & (torch.rand(40, 1, 17, generator=torch.Generator().manual_seed(1)) < 0.4)
    landmark = is_landmark(17, block=3)
    total = grouped_softmax(logits(40, 17, 17), mask, landmark).sum(-1)
    # With only its block's landmark left of what it might see, a row has nothing to read.
    at = torch.arange(17)
    own = torch.where(mask, at, -1).amax(-1, keepdim=True) // 4
    sees = (mask & ~landmark & (at // 4 == own)).any(-1)
    for block in range(4):
        inside = mask & (at // 4 == block)
        gate = (inside & landmark).any(-1) & (inside & ~landmark).any(-1) & (block < own[..., 0])
        sees = sees | gate
    torch.testing.assert_close(total, sees.double(), rtol=0, atol=1e-12)


def test_landmarks_may_stand_anywhere():
    landmark = torch.zeros(9, dtype=torch.bool)
    landmark[[0, 4, 5]] = True  # one with no block, one with three tokens, one with none
    weights = grouped_softmax(logits(9, 9), causal(9), landmark)
    torch.testing.assert_close(weights[1:].sum(-1), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-12)
    assert weights[0].abs().max() == 0 and weights[:, landmark].abs().max() == 0
