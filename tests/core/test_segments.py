"""Sequences cut into landmarks."""

import pytest
import torch

from regardant.core.segments import segment_means, segment_of, softmax_over


@pytest.mark.parametrize(
    ("length", "landmarks", "expected"),
    [
        (6, 3, [0, 0, 1, 1, 2, 2]),
        (7, 3, [0, 0, 1, 1, 2, 2, 2]),
        (8, 3, [0, 0, 1, 1, 1, 2, 2, 2]),
        (3, 5, [0, 1, 2]),
        (5, 1, [0] * 5),
    ],
)
def test_segments_differ_by_one_and_the_longer_come_last(length, landmarks, expected):
    segment, used = segment_of(length, landmarks)
    assert segment[0].tolist() == expected
    assert used.tolist() == [min(length, landmarks)]


def test_padding_is_in_no_segment():
    real = torch.tensor([[True, False, True, True, True], [False] * 5, [False, True, False, False, True]])
    segment, used = segment_of(5, 2, real)
    assert segment.tolist() == [[0, 2, 0, 1, 1], [2] * 5, [2, 0, 2, 2, 1]]
    assert used.tolist() == [2, 0, 2]


def test_means():
    x = torch.arange(10.0).view(1, 1, 5, 2)
    means = segment_means(x, torch.tensor([[0, 0, 3, 1, 1]]), 3)
    assert means.tolist() == [[[[1, 2], [7, 8], [0, 0]]]]


def test_softmax_over_nothing_is_finite():
    logits = torch.randn(2, 3, requires_grad=True)
    seen = torch.tensor([[True, False, True], [False] * 3])
    weights = softmax_over(logits, seen)
    assert weights[0, 1] == 0 and weights.isfinite().all()
    (gradient,) = torch.autograd.grad(weights[:, 0].sum(), logits)
    assert gradient.isfinite().all()


def test_bad_input():
    with pytest.raises(ValueError, match="landmarks is 0"):
        segment_of(4, 0)
