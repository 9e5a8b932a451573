"""Mixers: layers x → y that mix tokens. `MultiHead` splits into `project`, `attend`, `merge`, so that a
system overrides just the step that it changes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regardant.core.checks import check_configuration, check_heads, check_input
from regardant.core.errors import require
from regardant.core.pattern import Causal, Padding, Pattern, both
from regardant.core.position import Position, make_position
from regardant.core.product import Linear, projections
from regardant.core.record import Record
from regardant.core.rule import HeadShape, Rule, SoftmaxRule
from regardant.core.state import State
from regardant.core.supports import Supports


class Mixer(nn.Module):
    """A layer on sequences: x [b, n, c] → y [b, n, c].

    `context` [b, m, c'] makes it cross-attention. `padding` is True where a token is real: it speaks
    of the keys, so of `context` where there is one and of x otherwise. Where decoding makes sense,
    `start` and `step` give, token by token, what `forward` gives at once.
    """

    supports: Supports = Supports()
    dim: int
    causal: bool

    def forward(
        self, x: Float[Tensor, "b n c"], context: Float[Tensor, "b m k"] | None = None,
        padding: Bool[Tensor, "b m"] | None = None, *, record: Record | None = None,
    ) -> Float[Tensor, "b n c"]:  # fmt: skip
        raise TypeError(f"{type(self).__name__} must define forward")

    def reference(
        self, x: Float[Tensor, "b n c"], context: Float[Tensor, "b m k"] | None = None,
        padding: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n c"]:  # fmt: skip
        """The same mathematics done plainly."""
        raise TypeError(f"{type(self).__name__} must define reference")

    def mixing_matrix(
        self, x: Float[Tensor, "b m c"], context: Float[Tensor, "b n k"] | None = None,
        padding: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b h m n"]:  # fmt: skip
        """How much each output takes of each token's values, head by head: heads = matrix · values.

        All of it is written out: to look at, not to run. Only for mixers that are linear in their values.
        """
        raise ValueError(f"{type(self).__name__} has no mixing matrix: it is not a matrix times its values")

    def mix(
        self, matrix: Float[Tensor, "b h m n"], x: Float[Tensor, "b m c"],
        context: Float[Tensor, "b n k"] | None = None,
    ) -> Float[Tensor, "b m c"]:  # fmt: skip
        """The output under a given mixing matrix: with x's own it is `forward`'s, with another one what
        that would do."""
        raise ValueError(f"{type(self).__name__} has no mixing matrix: it is not a matrix times its values")

    def start(
        self, batch: int, *, context: Float[Tensor, "b m k"] | None = None,
        padding: Bool[Tensor, "b m"] | None = None,
    ) -> State:  # fmt: skip
        """The state before the first token; of a cross-attention layer, the one that holds its context."""
        raise ValueError(f"{type(self).__name__} does not decode step by step")

    def step(self, x_t: Float[Tensor, "b c"], state: State) -> tuple[Float[Tensor, "b c"], State]:
        raise ValueError(f"{type(self).__name__} does not decode step by step")


@dataclass
class MultiHeadState(State):
    """The rule's state, and whether it holds a context instead of the past."""

    inner: State
    across: bool = False


class MultiHead(Mixer):
    """Projections around a rule: y = merge(rule(q, k, v)).

    `pattern` is what a query may see, on top of `causal`. `kv_heads` < `heads` shares keys and values
    among groups of query heads. `context_dim` makes a cross-attention layer; with `causal=True` it
    promises that a query's output depends on no later query, while the context is seen whole.
    """

    supports = Supports()

    def __init__(
        self, dim: int, heads: int, *, causal: bool = False, context_dim: int | None = None,
        pattern: Pattern | None = None, kv_heads: int | None = None, head_dim: int | None = None,
        position: str | Position = "none", max_length: int | None = None, bias: bool = False,
        scale: float | None = None, rule: Rule | None = None,
    ):  # fmt: skip
        super().__init__()
        check_heads(dim, heads, kv_heads, head_dim)
        self.dim, self.heads, self.causal, self.scale = dim, heads, causal, scale
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.context_dim, self.pattern = context_dim, pattern
        self.position = make_position(
            position, dim=dim, heads=heads, head_dim=self.head_dim, causal=causal, max_length=max_length
        )
        check_configuration(self)
        self.to_q = Linear(dim, heads * self.head_dim, bias=bias)
        self.to_k = Linear(context_dim or dim, self.kv_heads * self.head_dim, bias=bias)
        self.to_v = Linear(context_dim or dim, self.kv_heads * self.head_dim, bias=bias)
        self.to_out = Linear(heads * self.head_dim, dim, bias=bias)
        self.rule = self.make_rule() if rule is None else rule
        require(
            not self.position.biases or getattr(self.rule, "bias", None) is not None,
            f"position is {type(self.position).__name__}, a bias on logits, "
            f"but {type(self).__name__} has no logits",
        )

    def make_rule(self) -> Rule:
        """The rule of this system, when the caller gives none."""
        return SoftmaxRule(bias=self.position if self.position.biases else None)

    @classmethod
    def from_dense(cls, layer: MultiHead, **config) -> Self:
        """A layer of this system with the weights of a softmax layer, its own parameters as they start."""
        shared = dict(
            causal=layer.causal, context_dim=layer.context_dim, kv_heads=layer.kv_heads,
            head_dim=layer.head_dim, pattern=layer.pattern, position=deepcopy(layer.position),
            bias=layer.to_q.bias is not None, scale=layer.scale,
        )  # fmt: skip
        if not cls.supports.grouped:
            require(
                layer.kv_heads == layer.heads,
                f"{cls.__name__} does not share keys among heads, but the layer does",
            )
            del shared["kv_heads"]
        new = cls(layer.dim, layer.heads, **(shared | config)).to(layer.to_q.weight)
        for name in ("to_q", "to_k", "to_v", "to_out"):
            getattr(new, name).load_state_dict(getattr(layer, name).state_dict())
        return new

    def visible(self, keys: int, *, across: bool, padding: Tensor | None) -> Pattern | None:
        """Who sees whom in this call."""
        own = None if self.pattern is None else self.pattern.on(keys)
        order = Causal() if self.causal and not across else None
        return both(order, own, None if padding is None else Padding(padding))

    def check_inputs(self, x: Tensor, context: Tensor | None, padding: Tensor | None) -> None:
        check_input("x", x, "batch, length, width", self.dim, self.to_q.weight)
        require(
            context is not None or self.context_dim is None,
            f"context is missing, but context_dim={self.context_dim} made this a cross-attention layer",
        )
        if context is not None:
            require(
                self.supports.causal_cross if self.causal else self.supports.cross,
                f"context is given, but {type(self).__name__} with causal={self.causal} has no use for it",
            )
            check_input(
                "context", context, "batch, length, width", self.context_dim or self.dim, self.to_k.weight
            )
            require(
                context.shape[0] == x.shape[0],
                f"context has {context.shape[0]} samples, but x has {x.shape[0]}",
            )
        keys = x if context is None else context
        require(keys.shape[1] > 0, "there is no key to attend to: the length is 0")
        if padding is not None:
            require(self.supports.padding, f"padding is given, but {type(self).__name__} takes none")
            require(
                padding.dtype == torch.bool and padding.shape == keys.shape[:2],
                f"padding is {padding.dtype} {list(padding.shape)}, but it is bool {list(keys.shape[:2])}, "
                "True where real",
            )

    def project(
        self, x: Float[Tensor, "b m c"], context: Float[Tensor, "b n k"] | None = None, *, offset: int = 0
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b g n d"], Float[Tensor, "b g n d"]]:
        """Queries, keys and values, with their positions turned in; x begins at position `offset`."""
        x = self.position.embed(x, offset)
        if context is None:
            parts = projections(x, self.to_q, self.to_k, self.to_v)
        else:
            parts = (self.to_q(x), *projections(context, self.to_k, self.to_v))
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        if context is None:
            q, k = self.position.turn(q, offset), self.position.turn(k, offset)
        return q, k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, x: Tensor, pattern: Pattern | None,
        padding: Bool[Tensor, "b m"] | None = None, record: Record | None = None,
    ) -> Float[Tensor, "b h m e"]:  # fmt: skip
        """What each head makes of it: the rule. `x` is the layer's input, for rules that look at it.

        `pattern` holds the padding of the keys; `padding` is that of the queries, so None across.
        """
        return self.rule(q, k, v, pattern=pattern, scale=self.scale)

    def attend_reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, x: Tensor, pattern: Pattern | None,
        padding: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b h m e"]:  # fmt: skip
        return self.rule.reference(q, k, v, pattern=pattern, scale=self.scale)

    def merge(
        self, heads: Float[Tensor, "b h m e"], *, x: Float[Tensor, "b m c"], record: Record | None = None
    ) -> Float[Tensor, "b m c"]:
        """Heads back into one vector a token. `x` is the layer's input, for gates that look at it."""
        return self.to_out(heads.transpose(1, 2).flatten(2))

    def forward(self, x, context=None, padding=None, *, record=None):
        self.check_inputs(x, context, padding)
        q, k, v = self.project(x, context)
        pattern = self.visible(k.shape[2], across=context is not None, padding=padding)
        own = padding if context is None else None
        heads = self.attend(q, k, v, x=x, pattern=pattern, padding=own, record=record)
        return self.merge(heads, x=x, record=record)

    def reference(self, x, context=None, padding=None):
        self.check_inputs(x, context, padding)
        q, k, v = self.project(x, context)
        pattern = self.visible(k.shape[2], across=context is not None, padding=padding)
        own = padding if context is None else None
        return self.merge(self.attend_reference(q, k, v, x=x, pattern=pattern, padding=own), x=x)

    def mixing_matrix(self, x, context=None, padding=None):
        if not (self.supports.linear_in_values and self.rule.supports.linear_in_values):
            return super().mixing_matrix(x, context, padding)
        self.check_inputs(x, context, padding)
        q, k, v = self.project(x, context)
        pattern = self.visible(k.shape[2], across=context is not None, padding=padding)
        each = torch.eye(v.shape[2], dtype=v.dtype, device=v.device).expand(*v.shape[:2], -1, -1)
        own = padding if context is None else None
        return self.attend_reference(q, k, each, x=x, pattern=pattern, padding=own)

    def mix(self, matrix, x, context=None):
        values = self.project(x, context)[2]
        return self.merge(matrix @ values.repeat_interleave(self.heads // values.shape[1], dim=1), x=x)

    def explain(self, length: int, *, keys: int | None = None):
        """How this layer would run at a length (the plan of its softmax under its pattern)."""
        from regardant.core.plan import explain

        rule = self.rule
        require(
            isinstance(rule, SoftmaxRule),
            f"{type(rule).__name__} is no softmax under a pattern: it has no plan",
        )
        pattern = self.visible(keys or length, across=self.context_dim is not None, padding=None)
        return explain(
            pattern, length, keys, heads=self.heads, head_dim=self.head_dim,
            device=self.to_q.weight.device.type,
            bias=rule.bias is not None or type(rule).added is not SoftmaxRule.added,
            normaliser=rule.normaliser is not None,
        )  # fmt: skip

    def start(self, batch, *, context=None, padding=None):
        require(self.supports.step, f"{type(self).__name__} does not decode step by step")
        require(self.causal, "causal=False: a layer that sees the future cannot decode step by step")
        weight, across = self.to_q.weight, context is not None
        require(
            across or self.context_dim is None,
            f"context is missing, but context_dim={self.context_dim} made this a cross-attention layer",
        )
        shape = HeadShape(
            batch, self.heads, self.kv_heads, self.head_dim, self.head_dim, weight.device, weight.dtype
        )
        if not across:
            require(padding is None, "padding speaks of a context, and start was given none")
            pattern = self.visible(1, across=False, padding=None)
            return MultiHeadState(0, self.rule.start(shape, pattern=pattern))
        require(
            self.pattern is None,
            f"pattern is {self.pattern}, but only a context that is seen whole can be stepped over",
        )
        self.check_inputs(weight.new_zeros(batch, 1, self.dim), context, padding)
        _, k, v = self.project(weight.new_zeros(batch, 1, self.dim), context)
        pattern = self.visible(k.shape[2], across=True, padding=padding)
        return MultiHeadState(0, self.rule.start(shape, pattern=pattern, keys=k, values=v), across=True)

    def prefill(self, x: Float[Tensor, "b n c"]) -> tuple[Float[Tensor, "b n c"], State]:
        """`forward` over a prompt, and the state from which `step` goes on."""
        empty = self.start(x.shape[0])
        self.check_inputs(x, None, None)
        q, k, v = self.project(x)
        pattern = self.visible(k.shape[2], across=False, padding=None)
        y = self.merge(self.attend(q, k, v, x=x, pattern=pattern), x=x)
        shape = HeadShape(
            x.shape[0], self.heads, self.kv_heads, self.head_dim, self.head_dim, x.device, k.dtype
        )
        inner = self.rule.start(shape, pattern=pattern, keys=k, values=v)
        return y, type(empty)(x.shape[1], inner)

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x = x_t[:, None]
        if state.across:
            q = (
                self.to_q(self.position.embed(x, state.length))
                .unflatten(-1, (self.heads, -1))
                .transpose(1, 2)
            )
            heads, inner = self.rule.step(q[:, :, 0], None, None, state.inner, pattern=None, scale=self.scale)
        else:
            q, k, v = self.project(x, offset=state.length)
            pattern = self.visible(state.length + 1, across=False, padding=None)
            heads, inner = self.rule.step(
                q[:, :, 0], k[:, :, 0], v[:, :, 0], state.inner, pattern=pattern, scale=self.scale
            )
        return self.merge(heads[:, :, None], x=x)[:, 0], MultiHeadState(state.length + 1, inner, state.across)
