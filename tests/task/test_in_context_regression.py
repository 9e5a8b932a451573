"""Linear regression in context."""

import pytest
import torch

from regardant.task.in_context_regression import InContextRegression


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_without_noise_the_line_is_settled_by_as_many_examples_as_features():
    z, target = InContextRegression(features=3, length=9, noise=0.0).batch(20, generator())
    z, target = z.double(), target.double()
    slope = torch.linalg.lstsq(z[:, :-1, :-1], z[:, :-1, -1:]).solution
    torch.testing.assert_close((z[:, -1, :-1] * slope[..., 0]).sum(-1), target, rtol=0, atol=1e-4)


def test_pitfall_the_query_has_no_label_and_the_target_has_the_noise():
    task = InContextRegression(features=2, length=3, noise=4.0)
    z, target = task.batch(20_000, generator())
    assert (z[:, -1, -1] == 0).all()
    assert abs(target.square().mean() - (1 + 4)) < 0.15  # E (β·x)² = 1
    assert abs(z[:, :-1, -1].square().mean() - 5) < 0.15


def test_every_sample_has_a_line_of_its_own():
    z, _ = InContextRegression(features=1, length=1, noise=0.0).batch(5000, generator())
    slope = z[:, 0, 1] / z[:, 0, 0]
    assert abs(slope.std() - 1) < 0.05 and abs(slope.mean()) < 0.05


@pytest.mark.parametrize(
    ("own", "word"),
    [({"features": 0}, "features is 0"), ({"length": 0}, "length is 0"), ({"noise": -1.0}, "noise is -1")],
)
def test_bad_input(own, word):
    with pytest.raises(ValueError, match=word):
        InContextRegression(**own)
