"""ABC: attention with a memory of bounded size."""

import pytest
import torch

from regardant.core.pattern import Causal, Padding
from regardant.core.rule import HeadShape
from regardant.sequence.abc import ABC, BoundedMemoryRule


def rule(slots=3, seed=0):
    torch.manual_seed(seed)
    return BoundedMemoryRule(2, 4, slots=slots).double()


def heads(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, n, 4, dtype=torch.float64, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("causal", [False, True])
def test_slots_are_weighted_means_written_out(causal):
    own, (q, k, v) = rule(), heads(40)
    out = own(q, k, v, pattern=Causal() if causal else None)
    for t in (0, 7, 16, 39):
        seen = slice(t + 1 if causal else None)
        alpha = (k[:, :, seen] @ own.control.mT).exp()
        share = (alpha / alpha.sum(2, keepdim=True)).mT
        keys, values = share @ k[:, :, seen], share @ v[:, :, seen]
        expected = (q[:, :, t : t + 1] @ keys.mT / 2).softmax(-1) @ values
        torch.testing.assert_close(out[:, :, t : t + 1], expected, rtol=0, atol=1e-12)


def test_one_slot_is_one_mean_for_every_query():
    own, (q, k, v) = rule(slots=1), heads(9)
    out = own(q, k, v)
    torch.testing.assert_close(out, out[:, :, :1].expand_as(out))


def test_with_a_slot_for_every_token_the_tokens_are_kept():
    """Controls that single out one key each: the memory is the keys themselves, and ABC is softmax."""
    own, (q, _, v) = rule(slots=4), heads(4)
    k = torch.eye(4, dtype=torch.float64).expand(2, 2, -1, -1)
    with torch.no_grad():
        own.control.copy_(200 * torch.eye(4).expand(2, -1, -1))
        expected = (q @ k.mT / 2).softmax(-1) @ v
        torch.testing.assert_close(own(q, k, v), expected, rtol=0, atol=1e-12)


def test_pitfall_loud_controls_neither_overflow_nor_reach_back():
    """exp(w·k) alone would overflow; and a loud future must not empty the past by rounding."""
    own, (q, k, v) = rule(), heads(64)
    early = own(q[:, :, :20], k[:, :, :20], v[:, :, :20], pattern=Causal())
    k[:, :, 20:] *= 1e4
    out = own(q, k, v, pattern=Causal())
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, :, :20], early, rtol=0, atol=1e-12)


def test_padding_writes_nothing_and_a_memory_of_nothing_reads_zeros():
    own, (q, k, v) = rule(), heads(6)
    real = torch.tensor([[False, False, True, True, False, True], [False] * 6])
    for pattern in (Padding(real), Causal() & Padding(real)):
        out = own(q, k, v, pattern=pattern)
        assert (out[1] == 0).all()
        torch.testing.assert_close(out, own.reference(q, k, v, pattern=pattern), rtol=0, atol=1e-12)


def test_the_state_is_the_slots_and_goes_on_from_a_prompt():
    own, (q, k, v) = rule(), heads(50)
    shape = HeadShape(2, 2, 2, 4, 4, q.device, q.dtype)
    whole = own(q, k, v, pattern=Causal())
    state = own.start(shape, pattern=Causal(), keys=k[:, :, :30], values=v[:, :, :30])
    size = state.nbytes
    for t in range(30, 50):
        out, state = own.step(q[:, :, t], k[:, :, t], v[:, :, t], state)
        torch.testing.assert_close(out, whole[:, :, t], rtol=0, atol=1e-12)
    assert state.nbytes == size == 2 * 2 * 3 * (4 + 4 + 1) * 8


def test_bad_input():
    with pytest.raises(ValueError, match="slots is 0"):
        ABC(32, 4, slots=0)
