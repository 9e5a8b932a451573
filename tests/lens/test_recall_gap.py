"""The recall gap between two language models."""

import pytest
import torch

from regardant.lens.recall_gap import RecallGap, bigram_counts, hits


def test_known_answers():
    answers = list(RecallGap.known_answers(torch.Generator().manual_seed(0)))
    assert len(answers) >= 6
    for answer in answers:
        assert answer.error() <= answer.tolerance, answer.what


def test_pitfall_a_hit_is_at_the_target_behind_the_same_token_not_one_step_off():
    text = torch.tensor([[5, 9, 1, 5, 9, 2]])
    found = hits(text[:, :-1], text[:, 1:])
    assert found.int().tolist() == [[0, 0, 0, 1, 0]]


def test_gap_by_hand():
    """Two tokens, a hit and none: the better model gains ln 2 on the first and ln 4 on the other."""
    tokens, targets = torch.tensor([[0, 1, 0]]), torch.tensor([[1, 0, 1]])
    gap, ignorant = RecallGap(), torch.zeros(1, 3, 2, dtype=torch.float64)
    better = ignorant.clone()
    better[0, 2, 1] = 100.0  # the hit
    gap.add(tokens, targets, ignorant, better)
    found = gap.result()
    assert found.tokens == pytest.approx(1 / 3)
    assert (found.hits, found.others) == pytest.approx((0.6931471805599453 / 3, 0.0))
    assert found.share == pytest.approx(1.0)


def test_bad_input():
    with pytest.raises(ValueError, match="vocabulary=3"):
        bigram_counts(torch.tensor([0, 5]), 3)
    with pytest.raises(ValueError, match="nothing was added"):
        RecallGap().result()
    with pytest.raises(ValueError, match="rare is -1"):
        hits(torch.zeros(1, 2).long(), torch.zeros(1, 2).long(), rare=-1)
    with pytest.raises(ValueError, match="targets is"):
        hits(torch.zeros(1, 2).long(), torch.zeros(1, 3).long())
