"""Softmax where heads differ in whom they see: heads alike run together, each group by a plan of its own.

Under one plan every head would pay for the widest of them, in time, and in what decoding keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regardant.core import plan
from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Causal, Padding, Pattern, PerHead, both
from regardant.core.pattern_algebra import And
from regardant.core.rule import SoftmaxRule
from regardant.core.state import State
from regardant.core.visibility import Bias


@dataclass(frozen=True)
class HeadGroup:
    """Query heads that see alike."""

    heads: tuple[int, ...]
    pattern: Pattern | None


def head_groups(pattern: Pattern | None, heads: int) -> list[HeadGroup]:
    """The heads by what they see. Where heads differ inside another pattern (a union), they stay together."""
    parts = pattern.patterns if isinstance(pattern, And) else () if pattern is None else (pattern,)
    told = [part for part in parts if isinstance(part, PerHead)]
    rest = [part for part in parts if not isinstance(part, PerHead)]
    for part in told:
        require(
            len(part.patterns) == heads,
            f"PerHead has {len(part.patterns)} patterns, but there are {heads} heads",
        )
    if not told or any(part.by_head for part in rest):
        return [HeadGroup(tuple(range(heads)), pattern)]
    groups: dict[tuple[Pattern, ...], list[int]] = {}
    for head in range(heads):
        groups.setdefault(tuple(part.patterns[head] for part in told), []).append(head)
    return [HeadGroup(tuple(members), both(*rest, *own)) for own, members in groups.items()]


def take_heads(x: Float[Tensor, "b h *d"], heads: Sequence[int]) -> Float[Tensor, "b s *d"]:
    """Some heads; neighbours are not copied."""
    first, count = heads[0], len(heads)
    if list(heads) == list(range(first, first + count)):
        return x.narrow(1, first, count)
    return x.index_select(1, torch.tensor(heads, device=x.device))


def shared_heads(heads: Sequence[int], times: int) -> list[int]:
    """The key heads of these query heads, `times` of which share one: each once where that still works."""
    shared = [head // times for head in heads]
    once = list(dict.fromkeys(shared))
    every = len(heads) // len(once)
    return once if [each for each in once for _ in range(every)] == shared else shared


@dataclass(frozen=True)
class BiasOfHeads:
    """Some heads of a bias."""

    bias: Bias
    heads: tuple[int, ...]

    @property
    def stationary(self) -> bool:
        return getattr(self.bias, "stationary", False)

    def block(self, i: Int[Tensor, "m"], j: Int[Tensor, "n"]) -> Float[Tensor, "s m n"]:
        return self.bias.block(i, j)[list(self.heads)]


@dataclass
class HeadGroupsState(State):
    """One state a group of heads, each as large as what its heads see."""

    groups: tuple[State, ...]


class HeadGroupsRule(SoftmaxRule):
    """Softmax under a pattern that may differ by head."""

    def _of(self, group: HeadGroup) -> SoftmaxRule:
        bias = None if self.bias is None else BiasOfHeads(self.bias, group.heads)
        return SoftmaxRule(bias=bias, normaliser=self.normaliser)

    def forward(self, q, k, v, *, pattern=None, scale=None):
        groups, times = head_groups(pattern, q.shape[1]), q.shape[1] // k.shape[1]
        if len(groups) == 1:
            return super().forward(q, k, v, pattern=groups[0].pattern, scale=scale)
        outs = []
        for group in groups:
            keys = shared_heads(group.heads, times)
            own = take_heads(q, group.heads), take_heads(k, keys), take_heads(v, keys)
            outs.append(self._of(group)(*own, pattern=group.pattern, scale=scale))
        return self._in_order(torch.cat(outs, dim=1), groups)

    @staticmethod
    def _in_order(out: Tensor, groups: Sequence[HeadGroup]) -> Tensor:
        found = [head for group in groups for head in group.heads]
        return out if found == sorted(found) else take_heads(out, torch.tensor(found).argsort().tolist())

    def start(self, shape, *, pattern=None, keys=None, values=None):
        groups, times, inner = head_groups(pattern, shape.heads), shape.heads // shape.kv_heads, []
        for group in groups:
            shared = shared_heads(group.heads, times)
            own = replace(shape, heads=len(group.heads), kv_heads=len(shared))
            prompt = {} if keys is None else {"keys": take_heads(keys, shared)}
            prompt |= {} if values is None else {"values": take_heads(values, shared)}
            inner.append(self._of(group).start(own, pattern=group.pattern, **prompt))
        return HeadGroupsState(0 if keys is None else keys.shape[2], tuple(inner))

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        groups, times = head_groups(pattern, q.shape[1]), q.shape[1] // k.shape[1]
        outs, inner = [], []
        for group, own in zip(groups, state.groups, strict=True):
            keys = shared_heads(group.heads, times)
            out, own = self._of(group).step(
                take_heads(q, group.heads), take_heads(k, keys), take_heads(v, keys), own,
                pattern=group.pattern, scale=scale,
            )  # fmt: skip
            outs.append(out)
            inner.append(own)
        return self._in_order(torch.cat(outs, dim=1), groups), HeadGroupsState(state.length + 1, tuple(inner))


class PerHeadAttention(MultiHead):
    """Softmax attention of one sequence to itself in which every head has a pattern of its own.

    A subclass says `head_patterns`; `pattern`, where given, holds on top of them.
    """

    def head_patterns(self, length: int) -> Sequence[Pattern]:
        """What each query head may see in a sequence of this length, besides what is later."""
        raise TypeError(f"{type(self).__name__} must say what its heads see")

    def make_rule(self):
        return HeadGroupsRule(bias=self.position if self.position.biases else None)

    def visible(self, keys, *, across, padding):
        order = Causal() if self.causal else None
        given = None if self.pattern is None else self.pattern.on(keys)
        real = None if padding is None else Padding(padding)
        return both(order, PerHead(self.head_patterns(keys)), given, real)

    def explain(self, length, *, keys=None):
        """How the heads would run: the plan of those that compute most, and the mean of all their pairs."""
        asked = dict(
            head_dim=self.head_dim, device=self.to_q.weight.device.type, bias=self.position.biases,
            normaliser=self.rule.normaliser is not None,
        )  # fmt: skip
        groups = head_groups(self.visible(length, across=False, padding=None), self.heads)
        ways = [plan.explain(group.pattern, length, heads=len(group.heads), **asked) for group in groups]
        most = max(ways, key=lambda way: way.pairs)
        pairs = sum(way.pairs * len(group.heads) for way, group in zip(ways, groups)) / self.heads
        said = f"{len(groups)} groups of heads, the widest: {most.reason}"
        return replace(most, reason=said, pairs=round(pairs))
