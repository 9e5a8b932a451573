"""Reading the heads of a layer that regresses in context."""

import pytest
import torch

from regardant.lens.in_context_regression import (
    HeadReading,
    best_rate,
    debiased_gradient_step,
    gradient_step,
    ridge,
)
from regardant.task.in_context_regression import InContextRegression


def test_known_answers():
    for answer in HeadReading.known_answers(torch.Generator().manual_seed(0)):
        assert answer.error() <= answer.tolerance, answer.what


def test_pitfall_idle_heads_do_not_hide_the_pattern():
    """Two good heads and one of noise, which a mean over all would show."""
    matrices = torch.zeros(3, 3, 3, dtype=torch.float64)
    matrices[0, :2, :2], matrices[1, :2, :2] = torch.eye(2), -torch.eye(2)
    matrices[2] = 1e-3 * torch.randn(3, 3, dtype=torch.float64)
    values = torch.tensor([[0.0, 0.0, 2.0], [0.1, 0.0, -2.0], [3e-3, 1e-3, 1e-3]], dtype=torch.float64)
    found = HeadReading().of(matrices, values)
    assert found.live.tolist() == [True, True, False]
    assert found.off_diagonal[:2].tolist() == [0, 0]
    assert found.spill[:2].tolist() == pytest.approx([0, 0.05])
    assert found.defect == 0 and found.rate == pytest.approx(4.0, abs=1e-4)


def test_steps_by_hand():
    """Two examples in one dimension: x = 1, 3 with y = 2, 4, asked at 10."""
    z = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]]])
    assert gradient_step(z).item() == (10 * 2 + 30 * 4) / 2
    assert debiased_gradient_step(z).item() == (-10 * 2 + 10 * 4) / 2
    assert ridge(z, 4.0).item() == pytest.approx(10 * (2 + 12) / (1 + 9 + 4))
    assert best_rate(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])) == 3.0


def test_nothing_is_better_than_bayes():
    task = InContextRegression(held_out=4096)
    z, target = (torch.cat(parts) for parts in zip(*task.validation()))
    errors = {penalty: (ridge(z, penalty) - target).square().mean().item() for penalty in (0.1, 0.5, 2.5)}
    assert errors[0.5] == min(errors.values())
    assert 0.1 < errors[0.5] < 0.13


def test_bad_input():
    with pytest.raises(ValueError, match="penalty is 0"):
        ridge(torch.zeros(1, 3, 2), 0.0)
    with pytest.raises(ValueError, match="idle is 1"):
        HeadReading(idle=1.0)
    with pytest.raises(ValueError, match="key_query is"):
        HeadReading().of(torch.zeros(1, 3, 4), torch.zeros(1, 3))
