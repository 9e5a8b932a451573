"""The recurrence with a matrix state and a decay from token to token."""

import pytest
import torch

from regardant.core.decayed_linear import decayed_linear
from regardant.core.linear_recurrence import (
    linear_recurrence,
    linear_recurrence_reference,
    linear_recurrence_step,
)

LENGTHS = [1, 2, 3, 5, 63, 64, 65, 130]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(n, b=2, h=3, d=5, e=4, width=None):
    """Queries, keys, values, log decays (some forget everything, some nothing) and a state."""
    log = -torch.nn.functional.softplus(3 * draw(b, h, n, d if width is None else width, seed=3))
    log[:, :, ::7], log[:, :, 3::5] = -1e4, 0.0
    parts = draw(b, h, n, d), draw(b, h, n, d, seed=1), draw(b, h, n, e, seed=2), log
    return [part.requires_grad_() for part in (*parts, draw(b, h, d, e, seed=4))]


def plainly(q, k, v, log, state):
    outs = []
    for t in range(q.shape[2]):
        out, state = linear_recurrence_step(q[:, :, t], k[:, :, t], v[:, :, t], log[:, :, t], state)
        outs.append(out)
    return torch.stack(outs, dim=2), state


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("width", [None, 1])
@pytest.mark.parametrize("block", [1, 4, 64])
def test_it_is_the_equation_and_so_are_all_its_gradients(n, width, block):
    *parts, state = given = inputs(n, width=width)
    ours = linear_recurrence(*parts, state=state, return_state=True, block=block)
    plain = plainly(*given)
    weights = [draw(*part.shape, seed=9) for part in plain]
    for one, other in zip(ours, plain):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    found, right = (
        torch.autograd.grad(sum((part * weight).sum() for part, weight in zip(both, weights)), given)
        for both in (ours, plain)
    )
    for one, other in zip(found, right):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    torch.testing.assert_close(linear_recurrence_reference(*parts, state=state), plain[0], rtol=0, atol=1e-12)


def test_by_hand():
    q = k = torch.ones(1, 1, 3, 1).double()
    v = torch.tensor([1.0, 2, 4]).double().view(1, 1, 3, 1)
    out = linear_recurrence(q, k, v, torch.full((1, 1, 3, 1), 0.5).double().log())
    torch.testing.assert_close(out.flatten(), torch.tensor([1, 2.5, 5.25]).double(), rtol=0, atol=1e-12)


def test_a_decay_that_stays_is_decayed_linear_attention():
    q, k, v, *_ = inputs(100)
    rates = -torch.tensor([0.1, 1.0, 0.0]).double()
    log = rates[:, None, None].expand(2, 3, 100, 1)
    torch.testing.assert_close(
        linear_recurrence(q, k, v, log), decayed_linear(q, k, v, rates), rtol=0, atol=1e-11
    )


def test_tiles_join():
    """So many heads that a tile holds one block, and so few that it holds many."""
    for heads, n in ((80, 70), (1, 64 * 70 + 3)):
        q, k, v, log, _ = inputs(n, b=1, h=heads, d=2, e=2)
        torch.testing.assert_close(
            linear_recurrence(q, k, v, log), linear_recurrence_reference(q, k, v, log), rtol=0, atol=1e-11
        )


def test_no_decay_is_too_strong_and_none_costs_precision_behind_it():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 128, 4)
    log = torch.full((1, 1, 128, 4), -1e-3)
    log[:, :, 40], log[:, :, 50:60] = -1e4, -80.0
    log.requires_grad_()
    out = linear_recurrence(q, k, v, log)
    plain = linear_recurrence_reference(*(x.double() for x in (q, k, v, log)))
    torch.testing.assert_close(out.double(), plain, rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(out.sum(), log)
    assert gradient.isfinite().all()
    assert gradient[:, :, 40].abs().max() == 0


def test_only_the_state_may_be_asked_for():
    *parts, state = given = inputs(70)
    _, last = linear_recurrence(*parts, state=state, return_state=True)
    _, plain = plainly(*given)
    used = given[1:]
    for one, other in zip(torch.autograd.grad(last.sum(), used), torch.autograd.grad(plain.sum(), used)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_half_precision_stays_near_and_keeps_a_single_precision_state():
    parts = [part.detach() for part in inputs(100)[:4]]
    low, last = linear_recurrence(*(x.bfloat16() for x in parts[:3]), parts[3].float(), return_state=True)
    assert (low.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    right = linear_recurrence(*(x.bfloat16().double() for x in parts[:3]), parts[3].float().double())
    assert (low.double() - right).norm() / right.norm() < 0.01


@pytest.mark.parametrize(
    "change, words",
    [
        ({"block": 48}, "block is 48, but a block is halved"),
        ({"log_decay": draw(1, 1, 4, 2)}, "log_decay has shape"),
        ({"v": draw(1, 1, 3, 3)}, "v has shape"),
        ({"k": draw(1, 2, 4, 3)}, "k has shape"),
        ({"q": draw(1, 4, 3)}, "q has shape"),
        ({"state": draw(1, 1, 2, 3)}, "state has shape"),
        ({"v": draw(1, 1, 4, 3).float()}, "they must be alike"),
    ],
)
def test_bad_input_is_told_in_one_sentence(change, words):
    given = {
        "q": draw(1, 1, 4, 3),
        "k": draw(1, 1, 4, 3),
        "v": draw(1, 1, 4, 3),
        "log_decay": draw(1, 1, 4, 3),
    }
    with pytest.raises(ValueError, match=words):
        linear_recurrence(**(given | change))
