"""Attention over a cache that grows coarser with age, after the "staircase adaptive quantization" of "The
Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI" (2024,
arXiv:2410.18441).

The newest R tokens are kept as they are. A group of g older ones is put on a grid of 8 bits, at twice the age
on one of 4 bits, at four times on one of 2, each time from what it is by then:

    full  →  8 bits at age R  →  4 bits at age 2R  →  2 bits at age 4R

Keys have a grid a channel along the group, values a grid a token, as KIVI has them; age is counted in whole
groups, so that all tokens of a query's group see the same keys. Decoding keeps the codes themselves, packed
into bytes; `forward` computes what decoding would. Gradients pass the grids as if nothing were rounded.

The paper's abstract is all that we had: the steps, their ages and the grids are our reading, not the
author's. `bits` may be other ones, and one for all ages is a uniform cache to compare with. Going down by
steps adds up no errors: 255 = 17 · 15 and 15 = 5 · 3, odd multiples, so that a grid's points and the edges
between them are also the finer one's, and what was rounded twice was rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Causal, Pattern
from regardant.core.plan import attend, attend_rows
from regardant.core.quantized_rows import PACKED, QuantizedRows, on_grid
from regardant.core.rule import HeadShape, Rule
from regardant.core.state import State
from regardant.core.supports import Supports

AGES = (1, 2, 4)
"""At which multiples of R a group goes down a step."""


@dataclass
class StaircaseState(State):
    """The newest rows as they are, and those of every step down, the oldest of each first."""

    keys: Float[Tensor, "b g n d"]
    values: Float[Tensor, "b g n d"]
    coarse_keys: tuple[QuantizedRows, ...]
    coarse_values: tuple[QuantizedRows, ...]


class StaircaseRule(Rule):
    """Causal softmax attention over keys and values that are coarser the older they are."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, padding=False,
        linear_in_values=False, time=2.0, memory=1.0, state=1.0,
    )  # fmt: skip

    def __init__(self, *, group: int, recent: int, bits: tuple[int, ...]):
        super().__init__()
        self.group, self.recent, self.bits = group, recent, bits

    def ends(self, group: int) -> list[int]:
        """Before which group each step down ends, for queries of this group; the first step's end is last."""
        return [max(group - self.recent * age // self.group, 0) for age in AGES[: len(self.bits)]]

    def forward(self, q, k, v, *, pattern=None, scale=None):
        self._causal(pattern)
        keys, values = self._steps(k, self.group), self._steps(v, None)

        def rows(q, *sources, group: int) -> Tensor:
            keys, values = sources[: len(sources) // 2], sources[len(sources) // 2 :]
            upto = group * self.group + q.shape[2]
            edges = [upto, *(end * self.group for end in self.ends(group)), 0]
            seen = [
                torch.cat(
                    [each[:, :, low:high] for each, high, low in zip(side, edges, edges[1:])][::-1], dim=2
                )
                for side in (keys, values)
            ]
            return attend(q, *seen, Causal(), scale=scale, offset=group * self.group)

        pieces = q.split(self.group, dim=2)
        again = torch.is_grad_enabled() and len(pieces) > 1  # or each piece would keep keys of its own
        out = [
            checkpoint(rows, piece, *keys, *values, group=at, use_reentrant=False)
            if again
            else rows(piece, *keys, *values, group=at)
            for at, piece in enumerate(pieces)
        ]
        return torch.cat(out, dim=2)

    def _steps(self, x: Float[Tensor, "b g n d"], group: int | None) -> list[Tensor]:
        """x as it is, and on each grid after the other; the last group counts once it is whole."""
        whole = x[:, :, : x.shape[2] // self.group * self.group]
        steps = [x]
        for bits in self.bits:
            whole = on_grid(whole, bits, group)
            steps.append(whole)
        return steps

    def reference(self, q, k, v, *, pattern=None, scale=None):
        """All pairs at every step, of which each pair takes one."""
        self._causal(pattern)
        n, share = q.shape[2], q.shape[1] // k.shape[1]
        at = torch.arange(n, device=q.device) // self.group
        apart = at[:, None] - at[None]
        step = sum((apart > self.recent * age // self.group).long() for age in AGES[: len(self.bits)])
        keys, values = self._steps(k, self.group), self._steps(v, None)
        logits, out = q.new_zeros(*q.shape[:3], n), torch.zeros_like(q)
        for which in range(len(keys)):
            short = n - keys[which].shape[2]
            key, value = (
                torch.nn.functional.pad(side[which], (0, 0, 0, short)).repeat_interleave(share, dim=1)
                for side in (keys, values)
            )
            logits = logits + (q @ key.mT) * (step == which)
            values[which] = value
        logits = logits * (q.shape[-1] ** -0.5 if scale is None else scale)
        later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        weights = logits.masked_fill(later, -torch.inf).softmax(-1)
        for which, value in enumerate(values):
            out = out + (weights * (step == which)) @ value
        return out

    def _causal(self, pattern: Pattern | None) -> None:
        require(
            isinstance(pattern, Causal),
            f"pattern is {pattern}, but only causal attention has a cache that ages",
        )

    def start(self, shape: HeadShape, *, pattern=None, keys=None, values=None):
        if keys is None:
            kind = {"device": shape.device, "dtype": shape.dtype}
            keys = torch.zeros(shape.batch, shape.kv_heads, 0, shape.head_dim, **kind)
            values = torch.zeros(shape.batch, shape.kv_heads, 0, shape.value_dim, **kind)
        coarse_keys, coarse_values = (
            tuple(
                QuantizedRows.of(rows.new_zeros(*rows.shape[:2], self.group, rows.shape[3]), bits, grid).part(
                    0, 0
                )
                for bits in self.bits
            )
            for rows, grid in ((keys, self.group), (values, None))
        )
        state = StaircaseState(keys.shape[2], keys, values, coarse_keys, coarse_values)
        return self._aged(state, keys.shape[2] // self.group)

    def _aged(self, state: StaircaseState, group: int) -> StaircaseState:
        """Every group where it belongs when the query is of this one."""
        sides = []
        for fresh, coarse, grid in (
            (state.keys, state.coarse_keys, self.group),
            (state.values, state.coarse_values, None),
        ):
            coarse = list(coarse)
            for which, end in enumerate(self.ends(group)):
                # What stands before a step in order of age is what has gone further down.
                before = sum(rows.length for rows in coarse[which:])
                count = end * self.group - before
                if count <= 0:
                    continue
                if which == 0:
                    taken, fresh = fresh[:, :, :count], fresh[:, :, count:]
                else:
                    above = coarse[which - 1]
                    taken, coarse[which - 1] = above.part(0, count).values(), above.part(count, above.length)
                coarse[which] = coarse[which].append(QuantizedRows.of(taken, self.bits[which], grid))
            sides.append((fresh, tuple(coarse)))
        (keys, coarse_keys), (values, coarse_values) = sides
        return StaircaseState(state.length, keys, values, coarse_keys, coarse_values)

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        keys, values = (
            torch.cat([held, new[:, :, None]], dim=2) for held, new in ((state.keys, k), (state.values, v))
        )
        state = StaircaseState(state.length + 1, keys, values, state.coarse_keys, state.coarse_values)
        state = self._aged(state, (state.length - 1) // self.group)
        keys, values = (
            torch.cat([*(rows.values() for rows in reversed(coarse)), fresh], dim=2)
            for coarse, fresh in ((state.coarse_keys, state.keys), (state.coarse_values, state.values))
        )
        return attend_rows(q[:, :, None], keys, values, scale=scale)[:, :, 0], state


class StaircaseCache(MultiHead):
    """Causal softmax attention whose cache takes `bits` bits at ages of 1, 2 and 4 times `recent` tokens."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, padding=False,
        linear_in_values=False, time=2.0, memory=1.0, state=1.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, group: int = 32, recent: int = 64,
        bits: tuple[int, ...] = (8, 4, 2), **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, causal=causal, **shared)
        require(group >= 1, f"group is {group}, but a grid is of at least one row")
        require(
            recent >= 0 and recent % group == 0,
            f"recent is {recent}, but what is kept as it is are whole groups: a multiple of group={group}",
        )
        require(
            1 <= len(bits) <= len(AGES) and all(each in PACKED for each in bits),
            f"bits is {bits}, but it has 1 to {len(AGES)} steps of 1, 2, 4 or 8 bits",
        )
        require(
            not self.position.biases,
            f"position is {type(self.position).__name__}, a bias on logits, which has no room here",
        )
        self.rule = StaircaseRule(group=group, recent=recent, bits=tuple(bits))

    def mean_bits(self, length: int, *, full: int = 16) -> float:
        """Bits a number of the cache behind so many tokens, steps and least values of the grids included."""
        rule, ends = self.rule, self.rule.ends((length - 1) // self.rule.group)
        edges = [length, *(end * rule.group for end in ends), 0]
        grids = full * (1 / rule.group + 1 / self.head_dim)  # the half of 2 a key's group and 2 a value
        total = full * (edges[0] - edges[1])
        for bits, high, low in zip(rule.bits, edges[1:], edges[2:]):
            total += (bits + grids) * (high - low)
        return total / length
