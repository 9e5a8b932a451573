"""Rules: how much each query takes from each key. (q, k, v) under a pattern → an output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core import plan
from regardant.core.errors import require
from regardant.core.pattern import And, Causal, Pattern, Window, split_padding
from regardant.core.state import Cache, State
from regardant.core.supports import Supports
from regardant.core.visibility import Bias


@dataclass(frozen=True)
class HeadShape:
    """What a rule must know to begin a state."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    device: torch.device
    dtype: torch.dtype


class Rule(nn.Module):
    """q [b, h, m, d]; k [b, g, n, d]; v [b, g, n, e], where g divides h → [b, h, m, e].

    `forward` is written for speed, `reference` for reading: the paper's equation, plainly, in any
    dtype; it is the oracle of the tests.
    """

    supports: Supports = Supports()

    def forward(
        self, q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
        *, pattern: Pattern | None = None, scale: float | None = None,
    ) -> Float[Tensor, "b h m e"]:  # fmt: skip
        raise TypeError(f"{type(self).__name__} must define forward")

    def reference(
        self, q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
        *, pattern: Pattern | None = None, scale: float | None = None,
    ) -> Float[Tensor, "b h m e"]:  # fmt: skip
        raise TypeError(f"{type(self).__name__} must define reference")

    def start(
        self, shape: HeadShape, *, pattern: Pattern | None = None,
        keys: Float[Tensor, "b g n d"] | None = None, values: Float[Tensor, "b g n e"] | None = None,
    ) -> State:  # fmt: skip
        """A decoding state that has seen nothing, or `keys` and `values` (a prompt, a context)."""
        raise ValueError(f"{type(self).__name__} does not decode step by step")

    def step(
        self, q: Float[Tensor, "b h d"], k: Float[Tensor, "b g d"] | None, v: Float[Tensor, "b g e"] | None,
        state: State, *, pattern: Pattern | None = None, scale: float | None = None,
    ) -> tuple[Float[Tensor, "b h e"], State]:  # fmt: skip
        """One more token. Without `k` and `v` the query only reads the state (cross-attention)."""
        raise ValueError(f"{type(self).__name__} does not decode step by step")


def causal_and_padding(rule: nn.Module, pattern: Pattern | None) -> tuple[bool, Tensor | None]:
    """For rules that serve only these: whether the pattern is causal, and its padding mask or None."""
    rest, real = split_padding(pattern)
    require(
        rest is None or isinstance(rest, Causal),
        f"pattern is {rest}, but {type(rule).__name__} can only be causal or not, with padding",
    )
    return rest is not None, real


@dataclass
class KeyValueState(State):
    """All keys and values that a later query may still see: the first few, and the recent ones."""

    keys: Cache
    values: Cache
    first_keys: Tensor | None = None
    first_values: Tensor | None = None
    real: Tensor | None = None
    """Of a context: which of its keys are real [b, n]."""


class SoftmaxRule(Rule):
    """softmax(q kᵀ · scale + bias) v under any pattern.

    `bias` is an object with `block(i, j) -> [h, m, n]` (see `regardant.core.position`); `normaliser`
    replaces the softmax: (logits, mask) → weights over the last axis.
    """

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(self, *, bias: nn.Module | None = None, normaliser: Callable | None = None):
        super().__init__()
        self.bias, self.normaliser = bias, normaliser

    def added(self, q: Float[Tensor, "b h m d"], *, scale: float | None, offset: int = 0) -> Bias | None:
        """What is added to the logits of these queries, the first of which stands at `offset`."""
        return self.bias

    def forward(self, q, k, v, *, pattern=None, scale=None):
        bias = self.added(q, scale=scale)
        return plan.attend(q, k, v, pattern, scale=scale, bias=bias, normaliser=self.normaliser)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        return plan.attend_dense(q, k, v, pattern, scale=scale, bias=self.bias, normaliser=self.normaliser)

    def start(self, shape, *, pattern=None, keys=None, values=None):
        lead = (shape.batch, shape.kv_heads)
        if keys is None:
            keys = torch.empty(*lead, 0, shape.head_dim, device=shape.device, dtype=shape.dtype)
            values = torch.empty(*lead, 0, shape.value_dim, device=shape.device, dtype=shape.dtype)
        length, reach = keys.shape[-2], None if pattern is None else pattern.reach()
        if reach is None or not reach.back < float("inf"):
            return KeyValueState(
                length, Cache(keys), Cache(_upright(values), upright=True), real=split_padding(pattern)[1]
            )
        keep = max(int(reach.back) + 1, 1)
        first = (keys[..., : reach.first, :], values[..., : reach.first, :]) if reach.first else (None, None)
        recent = slice(max(length - keep, 0), None)
        values = _upright(values[..., recent, :])
        return KeyValueState(
            length, Cache(keys[..., recent, :], keep=keep), Cache(values, keep=keep, upright=True), *first
        )

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        if k is not None:
            state = self._remember(state, k[:, :, None], v[:, :, None], pattern)
        keys, values = state.keys.rows, state.values.rows
        at = torch.arange(state.length - keys.shape[-2], state.length, device=q.device)
        if state.first_keys is not None and state.length > keys.shape[-2]:
            lost = min(state.first_keys.shape[-2], state.length - keys.shape[-2])
            keys = torch.cat([state.first_keys[..., :lost, :], keys], dim=-2)
            values = torch.cat([state.first_values[..., :lost, :], values], dim=-2)
            at = torch.cat([torch.arange(lost, device=q.device), at])
        now = torch.tensor([max(state.length - 1, 0)], device=q.device)
        mask = None
        if state.real is not None:
            mask = state.real[:, None, None, :]
        elif not _sees_all_it_keeps(pattern):
            mask = pattern.block(now, at, batch=q.shape[0], heads=q.shape[1])
        bias = self.added(q[:, :, None], scale=scale, offset=max(state.length - 1, 0))
        bias = None if bias is None else bias.block(now, at)
        out = plan.attend_rows(
            q[:, :, None], keys, values, mask, scale=scale, bias=bias, normaliser=self.normaliser
        )
        return out[:, :, 0], state

    @staticmethod
    def _remember(state: KeyValueState, k: Tensor, v: Tensor, pattern: Pattern | None) -> KeyValueState:
        first_keys, first_values = state.first_keys, state.first_values
        if first_keys is not None and first_keys.shape[-2] < pattern.reach().first:
            first_keys, first_values = (
                torch.cat([first_keys, k], dim=-2),
                torch.cat([first_values, v], dim=-2),
            )
        return KeyValueState(
            state.length + 1, state.keys.append(k), state.values.append(v), first_keys, first_values
        )


def _upright(values: Float[Tensor, "*lead n e"]) -> Float[Tensor, "*lead n e"]:
    """The same values, each channel's side by side: a step reads them a good deal faster."""
    return values if torch.is_grad_enabled() else values.mT.contiguous().mT


def _sees_all_it_keeps(pattern: Pattern | None) -> bool:
    """Whether a step's query sees every row that the state kept, so that no mask is needed."""
    if isinstance(pattern, And):
        return all(isinstance(part, Causal | Window) for part in pattern.patterns)
    return pattern is None or isinstance(pattern, Causal | Window)
