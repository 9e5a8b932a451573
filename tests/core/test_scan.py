"""The recurrence channel by channel."""

import pytest
import torch

from regardant.core.scan import scan, scan_reference

LENGTHS = [1, 2, 3, 4, 5, 17, 64, 101]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decays(*shape, seed=3):
    """Some of them forget everything, some nothing."""
    log = -torch.nn.functional.softplus(3 * draw(*shape, seed=seed))
    log[:, ::7], log[:, 3::5] = -1e4, 0.0
    return log


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("shape", [(2, 4), (2, 1), (1, 4)])
def test_it_is_the_equation_and_so_are_its_gradients(n, shape):
    x, log, state = draw(2, n, 2, 4), decays(2, n, *shape), draw(2, 2, 4)
    inputs = [each.requires_grad_() for each in (log, x, state)]
    ours, plain = scan(log, x, state=state), scan_reference(log, x, state=state)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    weight = draw(*x.shape, seed=9)
    for one, other in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((plain * weight).sum(), inputs),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_by_hand():
    halves = torch.full((1, 3, 1), 0.5, dtype=torch.float64).log()
    found = scan(halves, torch.tensor([[[1.0], [2], [4]]]).double(), state=torch.tensor([[8.0]]).double())
    torch.testing.assert_close(found.flatten(), torch.tensor([5.0, 4.5, 6.25]).double(), rtol=0, atol=1e-12)


def test_tiles_join():
    """More channels than a tile's memory holds: 64 tokens a tile, and a ragged last one."""
    x, log = draw(1, 150, 8192), -torch.ones(1, 150, 1).double()
    x.requires_grad_()
    ours, plain = scan(log, x), scan_reference(log, x)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), x), torch.autograd.grad(plain.square().sum(), x)
    )


def test_what_is_forgotten_costs_no_precision_behind_it():
    log = torch.tensor([0.0, -1e4, -1e-3, -1e-3]).view(1, 4, 1)
    found = scan(log, torch.ones(1, 4, 1)).flatten()
    torch.testing.assert_close(found[3], torch.tensor(1 + 0.999000499 + 0.998001999), rtol=1e-6, atol=0)


def test_half_precision_is_summed_in_single():
    assert scan(torch.zeros(1, 3, 1), torch.ones(1, 3, 1).bfloat16()).dtype == torch.float32


def test_bad_input_is_told_in_one_sentence():
    x = draw(1, 3, 2)
    with pytest.raises(ValueError, match="log_decay has shape"):
        scan(draw(1, 3, 5), x)
    with pytest.raises(ValueError, match="state has shape"):
        scan(draw(1, 3, 2), x, state=draw(1, 3))
    with pytest.raises(ValueError, match="the length is 0"):
        scan(draw(1, 0, 2), draw(1, 0, 2))
