"""Titans (Behrouz et al., "Titans: Learning to Memorize at Test Time", 2025, arXiv:2501.00663): attention as
a short-term memory, a neural memory M that learns while it reads as a long-term one, and P learned tokens p
that are always there. Three ways to join them, ‖ being concatenation in time:

    as context (MAC), segment by segment      as a gate (MAG)              as a layer (MAL)
    h = M_before(S)                           y = Attn(p ‖ x)              y = M(p ‖ x)
    y = Attn(p ‖ h ‖ S)                       o = y ⊗ M(p ‖ x)             o = Attn(y)
    o = y ⊗ M_after(y)

MAC attends within a segment, to p and to what the memory of all earlier segments says to each token; MAG and
MAL attend through a window, and to the p (in MAL: to what the memory made of them). y ⊗ m stands for
norm(y) ⊙ sigmoid(norm(m)), each norm with weights of its own, and a projection behind it.

There is no official code, and the text leaves open what a language model may see. Ours is causal throughout:
token t of a segment sees h_1 … h_t and not the h of later tokens, which asked for them; and M_after is read
with what the tokens up to t wrote, never with the end of the chunk. All three read segments of any length
behind a carried state; MAC's own segments go on where that state left them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.neural_memory import TINY, NeuralMemory, NeuralMemoryState
from regardant.core.pattern import Causal, Padding, Sink, Window, both
from regardant.core.plan import attend, attend_dense, attend_rows
from regardant.core.position import Position
from regardant.core.state import State
from regardant.core.streaming import Streaming
from regardant.core.supports import Supports

Real = Bool[Tensor, "b r"] | None
"""Which rows are real; None as long as no padding was ever given."""


@dataclass
class WindowState(State):
    """The memory; and keys and values of the persistent tokens, then of the last tokens."""

    memory: NeuralMemoryState
    keys: Float[Tensor, "b g r d"]
    values: Float[Tensor, "b g r d"]
    real: Real


@dataclass
class SegmentState(State):
    """The memory; the weights that this segment asks, and the tail of what asks them; keys and values of the
    persistent tokens, then of this segment's tokens and what they were told."""

    memory: NeuralMemoryState
    asked: tuple[Tensor, ...]
    tail: Float[Tensor, "b t w"]
    keys: Float[Tensor, "b g r d"]
    values: Float[Tensor, "b g r d"]
    real: Real


class Gating(nn.Module):
    """y ⊗ m and a projection."""

    def __init__(self, dim: int, *, bias: bool):
        super().__init__()
        self.norms = nn.Parameter(torch.ones(2, dim))
        self.to_out = nn.Linear(dim, dim, bias=bias)

    def forward(self, y: Float[Tensor, "b n c"], m: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        y, m = (F.rms_norm(part, norm.shape, norm, TINY) for part, norm in zip((y, m), self.norms))
        return self.to_out(y * torch.sigmoid(m))


class _Titans(Streaming):
    """What the three have in common: attention, a memory and persistent tokens."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, linear_in_values=False,
        time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, persistent: int = 4, kv_heads: int | None = None,
        head_dim: int | None = None, position: str | Position = "none", max_length: int | None = None,
        bias: bool = False, depth: int = 2, expansion: int = 2, chunk: int = 16, kernel: int = 4,
        rate: float = 0.1, clip: float | None = 1.0, momentum: bool = True, forgetting: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.check_causal(causal)
        require(persistent >= 0, f"persistent is {persistent}, but tokens are counted from 0")
        self.dim, self.heads, self.causal = dim, heads, causal
        self.attention = MultiHead(
            dim, heads, causal=True, kv_heads=kv_heads, head_dim=head_dim, position=position,
            max_length=max_length, bias=bias,
        )  # fmt: skip
        require(
            not self.attention.position.biases,
            f"position is {type(self.attention.position).__name__}, a bias on logits, but persistent "
            "tokens stand at no distance: rotary and learned positions can be had",
        )
        self.memory = NeuralMemory(
            dim, heads, head_dim=self.attention.head_dim, depth=depth, expansion=expansion, chunk=chunk,
            kernel=kernel, rate=rate, clip=clip, momentum=momentum, forgetting=forgetting,
        )  # fmt: skip
        self.persistent = nn.Parameter(torch.randn(persistent, dim) * dim**-0.5)

    def always(self, batch: int) -> Float[Tensor, "b p c"]:
        """The persistent tokens of each sample."""
        return self.persistent.expand(batch, *self.persistent.shape)

    def keys_and_values(
        self, x: Float[Tensor, "b r c"], offset: int | None = None
    ) -> tuple[Float[Tensor, "b g r d"], Float[Tensor, "b g r d"]]:
        """Of tokens that stand at `offset` and behind it, or nowhere."""
        position, groups = self.attention.position, self.attention.kv_heads
        x = x if offset is None else position.embed(x, offset)
        k = self.attention.to_k(x).unflatten(-1, (groups, -1)).transpose(1, 2)
        v = self.attention.to_v(x).unflatten(-1, (groups, -1)).transpose(1, 2)
        return k if offset is None else position.turn(k, offset), v

    def holds(self, state: WindowState | SegmentState, batch: int, rows: int) -> bool:
        """Whether it has this layer's memory, and so many rows of keys and values."""
        shape = (batch, self.attention.kv_heads, rows, self.attention.head_dim)
        alike = state.keys.shape == state.values.shape == shape
        return alike and self.memory.fits(state.memory, batch)


class _Windowed(_Titans):
    """Attention through a window, with a memory beside it or before it."""

    def __init__(self, dim: int, heads: int, *, window: int = 256, **shared):
        require(window >= 1, f"window is {window}, but a window holds at least the query's own position")
        super().__init__(dim, heads, **shared)
        self.window = window

    def looked_at(self, x: Float[Tensor, "b p c"], said: Float[Tensor, "b p c"]) -> Float[Tensor, "b p c"]:
        """What attention gets to see: the tokens, or what the memory said to them."""
        raise TypeError(f"{type(self).__name__} must define looked_at")

    def start(self, batch, *, context=None, padding=None):
        """The persistent tokens have been read by the memory, and stand at the head of the keys."""
        self.check_start(context, padding)
        memory, always = self.memory.start(batch), self.always(batch)
        said = always
        if len(self.persistent):
            said, memory = self.memory.run(always, memory)
        return WindowState(0, memory, *self.keys_and_values(self.looked_at(always, said)), None)

    def look(
        self, x: Float[Tensor, "b n c"], state: WindowState, padding: Real, *, plainly: bool
    ) -> tuple[Float[Tensor, "b n c"], WindowState]:
        """Attention through the window, and a state whose keys and values are those that may be seen next."""
        first, before, length = len(self.persistent), state.keys.shape[2], state.length + x.shape[1]
        q, k, v = self.attention.project(x, offset=state.length)
        k, v = torch.cat([state.keys, k], dim=2), torch.cat([state.values, v], dim=2)
        real = _joined(state.real, padding, before, x)
        window = Window(self.window) | Sink(first) if first else Window(self.window)
        pattern = both(Causal(), window, None if real is None else Padding(real))
        heads = (attend_dense if plainly else attend)(q, k, v, pattern, offset=before)
        kept = torch.arange(k.shape[2], device=x.device)
        kept = kept[(kept < first) | (kept > before + x.shape[1] - self.window)]
        k, v = k.index_select(2, kept), v.index_select(2, kept)
        real = None if real is None else real.index_select(1, kept)
        return self.attention.merge(heads, x=x), WindowState(length, state.memory, k, v, real)

    def fits(self, state, batch):
        if not isinstance(state, WindowState):
            return False
        return self.holds(state, batch, len(self.persistent) + min(state.length, self.window - 1))


class TitansMAG(_Windowed):
    """Memory as a gate: attention through a window, weighed by what a memory beside it says."""

    def __init__(self, dim: int, heads: int, *, window: int = 256, **shared):
        super().__init__(dim, heads, window=window, **shared)
        self.gating = Gating(dim, bias=shared.get("bias", False))

    def looked_at(self, x, said):
        return x

    def run(self, x, state, *, padding=None, plainly=False):
        y, after = self.look(x, state, padding, plainly=plainly)
        m, memory = self.memory.run(x, state.memory, real=padding, plainly=plainly)
        return self.gating(y, m), replace(after, memory=memory)


class TitansMAL(_Windowed):
    """Memory as a layer: attention through a window over what a memory makes of the sequence."""

    def looked_at(self, x, said):
        return said

    def run(self, x, state, *, padding=None, plainly=False):
        said, memory = self.memory.run(x, state.memory, real=padding, plainly=plainly)
        y, after = self.look(said, state, padding, plainly=plainly)
        return y, replace(after, memory=memory)


class TitansMAC(_Titans):
    """Memory as context: attention within segments of `segment` tokens, and to what the memory of all earlier
    segments says; what attention makes of a segment goes into the memory."""

    def __init__(self, dim: int, heads: int, *, segment: int = 64, **shared):
        require(segment >= 1, f"segment is {segment}, but a segment holds at least one token")
        super().__init__(dim, heads, **shared)
        self.segment = segment
        self.gating = Gating(dim, bias=shared.get("bias", False))

    def start(self, batch, *, context=None, padding=None):
        self.check_start(context, padding)
        memory, tail = self.memory.start(batch), self.memory.start_of_queries(batch)
        return self._new_segment(SegmentState(0, memory, (), tail, tail, tail, None))

    def run(self, x, state, *, padding=None, plainly=False):
        n, outs, end = x.shape[1], [], 0
        sizes = []
        while end < n:
            sizes.append(min(n - end, self.segment - (state.length + end) % self.segment))
            end += sizes[-1]
        parts = [None] * len(sizes) if padding is None else padding.split(sizes, dim=1)
        for part, real in zip(x.split(sizes, dim=1), parts):
            out, state = self._within(part, state, real, plainly=plainly)
            outs.append(out)
            if state.length % self.segment == 0:
                state = self._new_segment(state)
        return torch.cat(outs, dim=1), state

    def _new_segment(self, state: SegmentState) -> SegmentState:
        keys, values = self.keys_and_values(self.always(len(state.tail)))
        return replace(state, asked=state.memory.inner.weights, keys=keys, values=values, real=None)

    def _within(
        self, x: Float[Tensor, "b n c"], state: SegmentState, padding: Real, *, plainly: bool
    ) -> tuple[Float[Tensor, "b n c"], SegmentState]:
        """Tokens of one segment."""
        before, n = state.keys.shape[2], x.shape[1]
        told, tail = self.memory.read(x, state.asked, state.tail, real=padding, plainly=plainly)
        q, *own = self.attention.project(x, offset=state.length)
        of_memory = self.keys_and_values(told, state.length)
        k, v = (
            torch.cat([old, *new], dim=2)
            for old, *new in zip((state.keys, state.values), of_memory, own)
        )  # fmt: skip
        twice = None if padding is None else padding.repeat(1, 2)
        real = _joined(state.real, twice, before, x.repeat(1, 2, 1))
        if plainly:
            heads = torch.cat([self._alone(q, k, v, real, before, n, t) for t in range(n)], dim=2)
        else:
            later = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
            mask = ~torch.cat([later.new_zeros(n, before), later, later], dim=1)
            mask = mask if real is None else mask & real[:, None, None]
            heads = attend_rows(q, k, v, mask)
        y = self.attention.merge(heads, x=x)
        m, memory = self.memory.run(y, state.memory, real=padding, plainly=plainly)
        state = SegmentState(state.length + n, memory, state.asked, tail, k, v, real)
        return self.gating(y, m), state

    @staticmethod
    def _alone(q: Tensor, k: Tensor, v: Tensor, real: Real, before: int, n: int, t: int) -> Tensor:
        """The heads of token t: it sees what was before, and of the new rows those up to its own."""
        seen = [*range(before + t + 1), *range(before + n, before + n + t + 1)]
        mask = None if real is None else real[:, None, None, seen]
        return attend_rows(q[:, :, t : t + 1], k[:, :, seen], v[:, :, seen], mask)

    def fits(self, state, batch):
        if not (isinstance(state, SegmentState) and self.memory.fits(state.memory, batch)):
            return False
        rows = len(self.persistent) + 2 * (state.length % self.segment)
        return state.tail.shape[0] == batch and self.holds(state, batch, rows)


def _joined(real: Real, padding: Real, before: int, x: Tensor) -> Real:
    """Which of the rows before and of the new ones are real."""
    if real is None and padding is None:
        return None
    real = x.new_ones(len(x), before, dtype=torch.bool) if real is None else real
    return torch.cat([real, x.new_ones(x.shape[:2], dtype=torch.bool) if padding is None else padding], dim=1)
