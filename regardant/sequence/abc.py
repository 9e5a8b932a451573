"""ABC (Peng et al., "ABC: Attention with Bounded-Memory Control", 2021, arXiv:2110.02488), with the control
that is learned from the tokens (ABC-MLP).

The memory holds `slots` keys and values, whatever the length. A token writes to slot r with weight
α_ir = exp(w_r·k_i), normalised over the tokens, and a query attends to the slots:

    K̃_r = Σ_i α_ir k_i / Σ_i α_ir        Ṽ_r likewise        y_t = softmax_r(s q_t·K̃_r) Ṽ

Where order counts, the sums run up to t, so that decoding keeps K̃, Ṽ and log Σ α of every slot and no more.
In parallel that is done block by block: inside a block the shares α_ir / Σ_{j≤t} α_jr are written out, and
what came before the block is its slots, worth exp(log Σ before - log Σ now). Only differences of logarithms
are taken to the exponent, so no control is too loud.

What differs from the official code of CAB: there values have a control of their own, made from the values;
here, as in the paper, one control writes both (and y is linear in the values). Padding writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.mixer import MultiHead, check_heads
from regardant.core.rule import HeadShape, Rule, causal_and_padding
from regardant.core.state import State
from regardant.core.supports import Supports

BLOCK = 16

NOTHING = -1e30
"""The logarithm of no weight: finite, so that no difference of two of them is undefined."""


@dataclass
class SlotState(State):
    """Every slot's key and value, and the logarithm of what has been written to it."""

    keys: Float[Tensor, "b g r d"]
    values: Float[Tensor, "b g r e"]
    weight: Float[Tensor, "b g r"]


class BoundedMemoryRule(Rule):
    """Attention to `slots` running means of the keys and values."""

    supports = Supports(pattern=False, grouped=False, time=1.0, memory=1.0, state=0.0)

    def __init__(self, heads: int, head_dim: int, *, slots: int):
        super().__init__()
        require(slots >= 1, f"slots is {slots}, but a memory has at least 1")
        self.control = nn.Parameter(torch.empty(heads, slots, head_dim))
        nn.init.normal_(self.control, std=head_dim**-0.5)

    def forward(self, q, k, v, *, pattern=None, scale=None):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        causal, real = causal_and_padding(self, pattern)
        kind, (q, k, v) = v.dtype, self._exact(q, k, v)
        logits = self._logits(k, real)
        if causal:
            return self._running(q * scale, k, v, logits).to(kind)
        slots = self._written(k, v, logits, 0)
        return self._read(q, slots, scale).to(kind)

    def _running(self, q, k, v, logits) -> Float[Tensor, "b h n e"]:
        n = q.shape[2]
        rest = -n % BLOCK
        q, k, v = (F.pad(x, (0, 0, 0, rest)).unflatten(2, (-1, BLOCK)) for x in (q, k, v))
        logits = F.pad(logits, (0, 0, 0, rest), value=NOTHING).unflatten(2, (-1, BLOCK))
        # What every block writes by itself, and what is there when it begins.
        inside = logits.logsumexp(dim=3)
        share = _shares(logits, inside[:, :, :, None])
        gained_k, gained_v = share.mT @ k, share.mT @ v
        before, keys, values = self._before(inside, gained_k, gained_v)
        level = torch.logaddexp(before[:, :, :, None], logits.logcumsumexp(dim=3))
        old = _shares(before[:, :, :, None], level)
        order = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=q.device).tril()
        past = logits[:, :, :, None].masked_fill(~order[..., None], NOTHING)
        write = _shares(past, level[:, :, :, :, None])
        near = ((q @ k.mT)[..., None] * write).sum(dim=4)
        weights = (near + (q @ keys.mT) * old).softmax(dim=-1)
        out = (weights * old) @ values + torch.einsum("bhnir,bhnijr->bhnij", weights, write) @ v
        return out.flatten(2, 3)[:, :, :n]

    @staticmethod
    def _before(inside, gained_k, gained_v):
        """The slots as each block finds them: the one loop, a step a block."""
        keys, values = torch.zeros_like(gained_k[:, :, 0]), torch.zeros_like(gained_v[:, :, 0])
        levels = F.pad(inside.logcumsumexp(dim=2), (0, 0, 1, 0), value=NOTHING)
        left, came = _shares(levels[:, :, :-1], levels[:, :, 1:]), _shares(inside, levels[:, :, 1:])
        every_key, every_value = [], []
        steps = (x.unbind(dim=2) for x in (left[..., None], came[..., None], gained_k, gained_v))
        for old, new, more_keys, more_values in zip(*steps):
            every_key.append(keys)
            every_value.append(values)
            keys, values = keys * old + more_keys * new, values * old + more_values * new
        return levels[:, :, :-1], torch.stack(every_key, dim=2), torch.stack(every_value, dim=2)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        """The memory of every query written out."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        causal, real = causal_and_padding(self, pattern)
        rows = []
        for t in range(q.shape[2]):
            seen = slice(t + 1 if causal else None)
            logits = self._logits(k, real)[:, :, seen]
            share = (logits.softmax(dim=2) * (logits > NOTHING)).mT
            keys, values = share @ k[:, :, seen], share @ v[:, :, seen]
            rows.append((q[:, :, t : t + 1] @ keys.mT * scale).softmax(-1) @ values)
        return torch.cat(rows, dim=2)

    def start(self, shape: HeadShape, *, pattern=None, keys=None, values=None):
        _, real = causal_and_padding(self, pattern)
        if keys is None:
            lead = (shape.batch, shape.kv_heads)
            exact = torch.promote_types(shape.dtype, torch.float32)
            keys, values = (
                torch.zeros(*lead, 0, width, device=shape.device, dtype=exact)
                for width in (shape.head_dim, shape.value_dim)
            )
        keys, values = self._exact(keys, values)
        return self._written(keys, values, self._logits(keys, real), keys.shape[2])

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        kind, scale = q.dtype, q.shape[-1] ** -0.5 if scale is None else scale
        (q,) = self._exact(q)
        if k is not None:
            k, v = self._exact(k, v)
            logits = self._logits(k[:, :, None], None)[:, :, 0]
            weight = torch.logaddexp(state.weight, logits)
            left, came = _shares(state.weight, weight)[..., None], _shares(logits, weight)[..., None]
            keys = state.keys * left + k[:, :, None] * came
            values = state.values * left + v[:, :, None] * came
            state = SlotState(state.length + 1, keys, values, weight)
        return self._read(q[:, :, None], state, scale)[:, :, 0].to(kind), state

    @staticmethod
    def _exact(*xs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in xs)

    def _logits(self, k: Tensor, real: Bool[Tensor, "#b n"] | None) -> Float[Tensor, "b g n r"]:
        """log α; padding writes nothing."""
        logits = k @ self.control.to(k.dtype).mT
        if real is None:
            return logits
        return logits.masked_fill(~real.expand(len(k), -1)[:, None, :, None], NOTHING)

    @staticmethod
    def _written(k: Tensor, v: Tensor, logits: Tensor, length: int) -> SlotState:
        weight = logits.logsumexp(dim=2)
        share = _shares(logits, weight[:, :, None]).mT
        return SlotState(length, share @ k, share @ v, weight)

    @staticmethod
    def _read(q: Tensor, slots: SlotState, scale: float) -> Tensor:
        return (q @ slots.keys.mT * scale).softmax(dim=-1) @ slots.values


def _shares(part: Tensor, whole: Tensor) -> Tensor:
    """exp(part - whole); 0 where the whole is nothing."""
    return (part - whole).exp().masked_fill(whole <= NOTHING / 2, 0)


class ABC(MultiHead):
    """Attention with a memory of `slots` keys and values."""

    supports = Supports(pattern=False, grouped=False, time=1.0, memory=1.0, state=0.0)

    def __init__(self, dim: int, heads: int, *, slots: int = 16, head_dim: int | None = None, **shared):
        check_heads(dim, heads, None, head_dim)
        rule = BoundedMemoryRule(heads, head_dim or dim // heads, slots=slots)
        super().__init__(dim, heads, head_dim=head_dim, rule=rule, **shared)
