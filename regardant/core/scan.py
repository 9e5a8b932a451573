"""The linear recurrence channel by channel, in linear time and a number of steps like the length's root.

    h_t = a_t ⊙ h_{t-1} + x_t        a_t = exp(log_decay_t) ≤ 1

Gated RNNs without feedback are this, and so is a state space model whose every state has a decay of its
own. The sequence is cut into about √n blocks of √n tokens: first all blocks are walked at once as if
nothing had come before them, then what came before is carried from block to block and added, faded by the
products of a. Nothing is divided and no exponent is positive. Backward is the same walk from right to left,

    g_t = dh_t + a_{t+1} ⊙ g_{t+1}        dx_t = g_t        dlog_decay_t = g_t ⊙ a_t ⊙ h_{t-1}
"""

from __future__ import annotations

from itertools import pairwise
from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.errors import require


def scan(
    log_decay: Float[Tensor, "b n *#c"],
    x: Float[Tensor, "b n *c"],
    *,
    state: Float[Tensor, "b *c"] | None = None,
) -> Float[Tensor, "b n *c"]:
    """Every h_t; `state` is h before the first token. What comes out is float32 for half-precision x.

    `log_decay` is log a_t ≤ 0, for every channel or spread over some of them; -1e4 forgets everything.
    """
    _check(log_decay, x, state)
    exact = torch.promote_types(x.dtype, torch.float32)
    x, log_decay = x.to(exact), log_decay.to(exact)
    state = x.new_zeros(x[:, 0].shape) if state is None else state.to(exact)
    decay = torch.exp(log_decay).expand_as(x)
    flat = (part.flatten(2) for part in (decay, x))
    return _Scan.apply(*flat, state.flatten(1)).view(x.shape)


def scan_reference(log_decay, x, *, state=None):
    """The equation as it stands, token by token."""
    _check(log_decay, x, state)
    held, found = torch.zeros_like(x[:, 0]) if state is None else state, []
    for log_t, x_t in zip(log_decay.unbind(1), x.unbind(1)):
        held = torch.exp(log_t) * held + x_t
        found.append(held)
    return torch.stack(found, dim=1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, decay, x, state):
        found = _walk(decay, x, state)
        ctx.save_for_backward(decay, found, state)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        decay, found, state = ctx.saved_tensors
        # From right to left, a token's gradient fades by the decay of the token behind it.
        behind = F.pad(decay[:, 1:], (0, 0, 0, 1))
        grad_x = _walk(behind, grad, torch.zeros_like(state), leftwards=True)
        before = torch.cat([state[:, None], found[:, :-1]], dim=1)
        return before.mul_(grad_x), grad_x, decay[:, 0] * grad_x[:, 0]


def _walk(
    decay: Float[Tensor, "b n c"], x: Float[Tensor, "b n c"], state: Float[Tensor, "b c"], *,
    leftwards: bool = False,
) -> Float[Tensor, "b n c"]:  # fmt: skip
    """h from a and x, some tokens at once, so that their channels stay in the caches."""
    (b, n, c), found = x.shape, torch.empty_like(x)
    together = max(64, (1 << 19 if x.device.type == "cpu" else 1 << 26) // (b * c))
    starts = range(0, n, together)
    for start in reversed(starts) if leftwards else starts:
        rows = slice(start, min(start + together, n))
        found[:, rows] = _walk_some(decay[:, rows], x[:, rows], state, leftwards)
        state = found[:, rows.start if leftwards else rows.stop - 1]
    return found


def _walk_some(decay: Tensor, x: Tensor, state: Tensor, leftwards: bool) -> Tensor:
    n = x.shape[1]
    size = isqrt(n - 1) + 1
    missing = -n % size
    # What fills the last block up hands on what it gets.
    decay = F.pad(decay, (0, 0, 0, missing), value=1.0).unflatten(1, (-1, size))
    found = F.pad(x, (0, 0, 0, missing)).unflatten(1, (-1, size))
    found = found if missing else found.clone()
    left = decay.clone()  # of what came before the block
    blocks, rows = range(found.shape[1]), range(size)
    if leftwards:
        blocks, rows = blocks[::-1], rows[::-1]
    for before, at in pairwise(rows):
        found[:, :, at].addcmul_(decay[:, :, at], found[:, :, before])
        left[:, :, at].mul_(left[:, :, before])
    met = torch.empty_like(found[:, :, 0])
    for block in blocks:
        met[:, block] = state
        state = torch.addcmul(found[:, block, rows[-1]], left[:, block, rows[-1]], state)
    return found.addcmul_(left, met[:, :, None]).flatten(1, 2)[:, :n]


def _check(log_decay: Tensor, x: Tensor, state: Tensor | None) -> None:
    require(x.ndim >= 3, f"x has shape {tuple(x.shape)}, but it must be [b, n, channels…]")
    require(x.shape[1] >= 1, "the length is 0, but a recurrence has at least one token")
    fits = log_decay.ndim == x.ndim and log_decay.shape[:2] == x.shape[:2]
    fits = fits and all(own in (1, other) for own, other in zip(log_decay.shape[2:], x.shape[2:]))
    require(
        fits,
        f"log_decay has shape {tuple(log_decay.shape)}, but x takes {tuple(x.shape)}, or 1 for channels",
    )
    if state is not None:
        wanted = (x.shape[0], *x.shape[2:])
        require(state.shape == wanted, f"state has shape {tuple(state.shape)}, but x takes {tuple(wanted)}")
