"""The base of linear time-varying mixers: three ways to run one recurrence."""

from dataclasses import replace

import pytest
import torch

from regardant.core.linear_time_varying import Factors, convolution, recur, recur_step


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decay(*shape):
    log = -torch.nn.functional.softplus(2 * draw(*shape, seed=7))
    log[:, :, ::5] = 0.0
    return log


def factors(n, kind, b=2, h=2, states=3, e=4):
    """Coefficients of each make that has a way of its own."""
    parts = dict(
        value=draw(b, h, n, e), write=draw(b, h, n, states, seed=1), read=draw(b, h, n, states, seed=2)
    )
    match kind:
        case "nothing forgotten":
            return Factors(**parts, skip=draw(b, h, n, e, seed=3))
        case "by state":
            return Factors(**parts, log_decay=decay(b, h, n, states, 1), gate=draw(b, h, n, e, seed=4))
        case "by token":
            return Factors(**parts, log_decay=decay(b, h, n, 1, 1))
        case "by channel":
            return Factors(**parts, log_decay=decay(b, h, n, 1, e), skip=draw(b, h, n, e, seed=3))
        case "with rates":
            return Factors(
                **parts, log_decay=decay(b, h, n, 1, e), rates=draw(h, states, e, seed=5).exp(),
                gate=draw(b, h, n, e, seed=4),
            )  # fmt: skip
        case "one state":
            parts = {name: part[..., :1] if name != "value" else part for name, part in parts.items()}
            return Factors(**parts, log_decay=decay(b, h, n, 1, e), gate=draw(b, h, n, e, seed=4))


KINDS = ["nothing forgotten", "by state", "by token", "by channel", "with rates", "one state"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 17, 70])
def test_whole_step_by_step_and_written_out_are_one(kind, n):
    given = factors(n, kind)
    sizes = *given.write.shape[:2], given.write.shape[3], given.value.shape[3]
    y, last = recur(given)
    state, stepped = draw(*sizes) * 0, []
    for t in range(n):
        out, state = recur_step(given.at(t, t + 1), state)
        stepped.append(out)
    torch.testing.assert_close(y, torch.cat(stepped, dim=2), rtol=0, atol=1e-10)
    torch.testing.assert_close(last, state, rtol=0, atol=1e-10)
    matrix = convolution(given).unflatten(1, (2, -1)).expand(-1, -1, sizes[3], -1, -1)
    torch.testing.assert_close(y, torch.einsum("bhets,bhse->bhte", matrix, given.value), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_goes_on_from_the_state_behind_its_beginning(kind):
    given = factors(30, kind)
    whole, last = recur(given)
    first, state = recur(given.at(0, 13))
    rest, end = recur(given.at(13, 30), state)
    torch.testing.assert_close(torch.cat([first, rest], dim=2), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(end, last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_the_steps(kind):
    given = factors(20, kind)
    parts = [part for part in vars(given).values() if part is not None]
    for part in parts:
        part.requires_grad_()
    weight = draw(2, 2, 20, 4, seed=9)
    ours = torch.autograd.grad((recur(given)[0] * weight).sum(), parts)
    state, total = torch.zeros(2, 2, given.write.shape[3], 4, dtype=torch.float64), 0
    for t in range(20):
        out, state = recur_step(given.at(t, t + 1), state)
        total = total + (out[:, :, 0] * weight[:, :, t]).sum()
    for one, other in zip(ours, torch.autograd.grad(total, parts)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_pitfall_transitions_multiply_from_the_token_behind_the_sender():
    """What token 0 wrote meets the Λ of tokens 1 and 2 at token 2, and not its own."""
    decays = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64).log().view(1, 1, 3, 1, 1)
    ones = torch.ones(1, 1, 3, 1, dtype=torch.float64)
    matrix = convolution(Factors(value=ones, write=ones, read=ones, log_decay=decays))[0, 0]
    expected = torch.tensor([[1, 0, 0], [0.25, 1, 0], [0.25 * 0.125, 0.125, 1]], dtype=torch.float64)
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-12)


def test_what_is_hidden_sends_nothing_and_keeps_the_state():
    given = factors(9, "with rates")
    real = torch.tensor([[True] * 4 + [False] * 3 + [True] * 2] * 2)
    left = {
        name: part[:, :, real[0]]
        for name, part in vars(given).items()
        if part is not None and name != "rates"
    }
    y, last = recur(given.hiding(real))
    alone, behind = recur(replace(given, **left))
    torch.testing.assert_close(y[:, :, real[0]], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, behind, rtol=0, atol=1e-12)


def test_many_tokens_are_worked_in_parts():
    """So many states that a part holds 32 tokens; its gradients are those of one long scan."""
    given = factors(100, "with rates", b=1, h=1, states=64, e=256)
    given.value.requires_grad_()
    (ours,) = torch.autograd.grad(recur(given)[0].square().sum(), given.value)
    y, _ = recur(given)
    at_once = convolution(given.at(0, 40))
    first = torch.einsum("bets,bhse->bhte", at_once, given.value[:, :, :40])
    torch.testing.assert_close(y[:, :, :40], first, rtol=0, atol=1e-9)
    slope = given.value.new_zeros(given.value.shape).index_fill_(2, torch.tensor([90]), 1e-6)
    shifted = replace(given, value=given.value + slope)
    climbed = (recur(shifted)[0].square().sum() - recur(given)[0].square().sum()) / 1e-6
    torch.testing.assert_close(climbed, ours[:, :, 90].sum(), rtol=1e-4, atol=1e-4)
