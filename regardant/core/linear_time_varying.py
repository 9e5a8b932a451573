"""Mixers that are a linear recurrence with coefficients from the input: one base for linear attention,
selective state space models and gated RNNs (Sieber et al. 2024, arXiv:2405.15731, the DSF).

    H_t = Λ_t ⊙ H_{t-1} + B_t ⊙ u_t        y_t = C_tᵀ H_t + D_t ⊙ u_t

H_t is a matrix a head, N states for each of e value channels. A system says how the coefficients come from
a token, and what is made of y. They come from that token alone, so the recurrence is linear in u: y = Φ u,
with Φ_ts = C_tᵀ (Λ_t ⋯ Λ_{s+1} ⊙ B_s) below the diagonal and on it, where D_t is added.

The base runs it in three ways, which are equal: whole sequences in linear time (`forward`), token by token
(`reference`, and `step` with a state that does not grow), and Φ written out (`mixing_matrix`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regardant.core.checks import check_input
from regardant.core.decayed_linear import decayed_linear
from regardant.core.errors import require
from regardant.core.linear_recurrence import linear_recurrence
from regardant.core.mixer import Mixer
from regardant.core.record import Record
from regardant.core.scan import scan
from regardant.core.state import State
from regardant.core.supports import Supports


@dataclass(frozen=True)
class Factors:
    """The coefficients of every token: B = write ⊗ gate, log Λ = log_decay ⊙ rates. An axis of 1 is shared:
    #N by all states, #e by all channels."""

    value: Float[Tensor, "b h n e"]
    """u"""
    write: Float[Tensor, "b h n N"]
    read: Float[Tensor, "b h n N"]
    """C"""
    gate: Float[Tensor, "b h n e"] | None = None
    log_decay: Float[Tensor, "b h n #N #e"] | None = None
    """At most 0; None forgets nothing."""
    rates: Float[Tensor, "h N e"] | None = None
    """At least 0, of no token: so that what differs from state to state is not written out for all tokens."""
    skip: Float[Tensor, "b h n e"] | None = None
    """D"""

    def sent(self) -> Float[Tensor, "b h n e"]:
        return self.value if self.gate is None else self.value * self.gate

    def faded(self) -> Float[Tensor, "b h n #N #e"] | None:
        """log Λ"""
        return self.log_decay if self.rates is None else self.log_decay * self.rates[:, None]

    def at(self, first: int, last: int) -> Factors:
        """The coefficients of some neighbouring tokens."""
        parts = {name: part for name, part in vars(self).items() if part is not None and name != "rates"}
        return replace(self, **{name: part[:, :, first:last] for name, part in parts.items()})

    def hiding(self, padding: Bool[Tensor, "b n"] | None) -> Factors:
        """With padded tokens that send nothing, not even to themselves, and leave the state as it is."""
        if padding is None:
            return self
        hidden = ~padding[:, None, :, None]
        decay, skip = self.log_decay, self.skip
        return replace(
            self,
            # What is not finite times 0 would stay so.
            value=self.value.masked_fill(hidden, 0),
            write=self.write.masked_fill(hidden, 0),
            log_decay=None if decay is None else decay.masked_fill(hidden[..., None], 0),
            skip=None if skip is None else skip.masked_fill(hidden, 0),
        )


def recur(
    factors: Factors, state: Float[Tensor, "b h N e"] | None = None
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h N e"]]:
    """Every y, and the state behind the last token: by the fastest way that these coefficients allow."""
    decay, sizes = (
        factors.log_decay,
        (*factors.write.shape[:2], factors.write.shape[3], factors.value.shape[3]),
    )
    if state is None:
        exact = torch.promote_types(factors.value.dtype, torch.float32)
        state = factors.value.new_zeros(sizes, dtype=exact)
    if decay is None:
        y, last = decayed_linear(
            factors.read, factors.write, factors.sent(), state=state, return_state=True
        )  # fmt: skip
    elif sizes[2] > 1 and decay.shape[4] == 1 and factors.rates is None:
        y, last = linear_recurrence(
            factors.read, factors.write, factors.sent(), decay[..., 0], state=state, return_state=True
        )
    elif sizes[2] == 1:
        y, last = _scanned(factors, state)
    else:
        y, last = _scanned_in_parts(factors, state)
    return (y if factors.skip is None else y + factors.skip * factors.value), last


def _scanned(factors: Factors, state: Tensor) -> tuple[Tensor, Tensor]:
    """All states written out: for one state a channel, or for a few tokens."""
    sent = factors.write[..., None] * factors.sent()[..., None, :]
    held = scan(factors.faded().flatten(0, 1), sent.flatten(0, 1), state=state.flatten(0, 1))
    held, read = held.unflatten(0, state.shape[:2]), factors.read
    asked = read.to(held.dtype)[..., None, :]
    y = (asked.mT * held).sum(-2) if read.shape[3] == 1 else (asked @ held)[..., 0, :]
    return y.to(factors.value.dtype), held[:, :, -1]


def _scanned_in_parts(factors: Factors, state: Tensor) -> tuple[Tensor, Tensor]:
    """Some tokens at a time; the way back writes their states out again, from those between the parts."""
    room = 1 << 19 if state.device.type == "cpu" else 1 << 26
    together = max(16, room // state.numel())
    found = []
    for first in range(0, factors.value.shape[2], together):
        part = factors.at(first, first + together)
        if torch.is_grad_enabled():
            y, state = checkpoint(_scanned, part, state, use_reentrant=False, preserve_rng_state=False)
        else:
            y, state = _scanned(part, state)
        found.append(y)
    return torch.cat(found, dim=2), state


def recur_step(
    factors: Factors, state: Float[Tensor, "b h N e"]
) -> tuple[Float[Tensor, "b h 1 e"], Float[Tensor, "b h N e"]]:
    """One token, as the equations have it. The given state is left as it was."""
    sent, write, read = (x[:, :, 0].to(state.dtype) for x in (factors.sent(), factors.write, factors.read))
    if factors.log_decay is not None:
        state = torch.exp(factors.faded()[:, :, 0].to(state.dtype)) * state
    state = state + write[..., None] * sent[..., None, :]
    y = (read[..., None, :] @ state).to(factors.value.dtype)
    return (y if factors.skip is None else y + factors.skip * factors.value), state


def convolution(factors: Factors) -> Float[Tensor, "b h*#e n n"]:
    """Φ written out: a matrix a head, or one for each of its channels where the coefficients tell them
    apart."""
    write, read = factors.write, factors.read
    n = read.shape[2]
    order = torch.ones(n, n, dtype=torch.bool, device=read.device).tril()[..., None]
    if factors.log_decay is None:
        matrix = ((read @ write.mT)[..., None]).masked_fill(~order, 0)
    else:
        faded = factors.faded().cumsum(dim=2)
        apart = (faded[:, :, :, None] - faded[:, :, None]).masked_fill(~order[..., None], float("-inf"))
        pairs = read[:, :, :, None] * write[:, :, None]
        matrix = (pairs[..., None] * torch.exp(apart)).sum(-2)
    if factors.gate is not None:
        matrix = matrix * factors.gate[:, :, None]
    if factors.skip is not None:
        at_once = torch.eye(n, dtype=read.dtype, device=read.device)[..., None]
        matrix = matrix + at_once * factors.skip[:, :, :, None]
    return matrix.permute(0, 1, 4, 2, 3).flatten(1, 2)


@dataclass
class RecurrentState(State):
    """H [b, h, N, e]: all that is left of the past."""

    matrix: Tensor


class LinearTimeVarying(Mixer):
    """y = merge(C_tᵀ H_t + D_t ⊙ u_t): a system defines `factors` and, where it wants, `merge`."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, grouped=False, time=1.0, memory=1.0,
        state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, heads: int, *, causal: bool = True):
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
        require(
            heads >= 1 and dim % heads == 0,
            f"heads is {heads}, but it must divide dim={dim} and be at least 1",
        )
        require(causal, "causal=False: a state that runs along the sequence cannot see the future")
        self.dim, self.heads, self.causal, self.head_dim = dim, heads, causal, dim // heads

    def factors(self, x: Float[Tensor, "b n c"]) -> Factors:
        """The coefficients of tokens, each from itself alone."""
        raise TypeError(f"{type(self).__name__} must define factors")

    def merge(self, y: Float[Tensor, "b h n e"], *, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """What is made of the recurrence's output."""
        raise TypeError(f"{type(self).__name__} must define merge")

    def split(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b h n e"]:
        """Channels to heads."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @property
    def _weight(self) -> nn.Parameter:
        return next(self.parameters())

    def _shown(self, x: Tensor, context: Tensor | None, padding: Tensor | None) -> Factors:
        check_input("x", x, "batch, length, width", self.dim, self._weight)
        require(x.shape[1] > 0, "x has no token: the length is 0")
        require(context is None, f"context is given, but {type(self).__name__} has no use for it")
        if padding is not None:
            require(
                padding.dtype == torch.bool and padding.shape == x.shape[:2],
                f"padding is {padding.dtype} {list(padding.shape)}, but it is bool {list(x.shape[:2])}, "
                "True where real",
            )
        return self.factors(x).hiding(padding)

    def forward(self, x, context=None, padding=None, *, record: Record | None = None):
        return self.merge(recur(self._shown(x, context, padding))[0], x=x)

    def reference(self, x, context=None, padding=None):
        factors = self._shown(x, context, padding)
        state, found = self.start(len(x)).matrix, []
        for t in range(x.shape[1]):
            y, state = recur_step(factors.at(t, t + 1), state)
            found.append(y)
        return self.merge(torch.cat(found, dim=2), x=x)

    def mixing_matrix(self, x, context=None, padding=None):
        """Φ [b, heads, n, n]; [b, dim, n, n] where every channel has its own."""
        return convolution(self._shown(x, context, padding))

    def mix(self, matrix, x, context=None):
        values = self.factors(x).value
        each = matrix.unflatten(1, (self.heads, -1)).expand(-1, -1, values.shape[3], -1, -1)
        return self.merge(torch.einsum("bhets,bhse->bhte", each, values), x=x)

    def start(self, batch, *, context=None, padding=None):
        require(context is None, f"context is given, but {type(self).__name__} has no use for it")
        require(padding is None, "padding speaks of a context, and start was given none")
        empty = self.factors(self._weight.new_zeros(1, 1, self.dim))
        sizes = batch, self.heads, empty.write.shape[3], empty.value.shape[3]
        exact = torch.promote_types(self._weight.dtype, torch.float32)
        return RecurrentState(0, torch.zeros(sizes, device=self._weight.device, dtype=exact))

    def prefill(self, x: Float[Tensor, "b n c"]) -> tuple[Float[Tensor, "b n c"], State]:
        """`forward` over a prompt, and the state from which `step` goes on."""
        y, last = recur(self._shown(x, None, None))
        return self.merge(y, x=x), RecurrentState(x.shape[1], last)

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self._weight)
        x = x_t[:, None]
        y, matrix = recur_step(self.factors(x), state.matrix)
        return self.merge(y, x=x)[:, 0], RecurrentState(state.length + 1, matrix)
