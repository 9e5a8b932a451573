"""Selective look-up (Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models",
2023, arXiv:2312.04927): attention for the few positions that need it, put between gated convolutions.

    y_t = f(x_t) softmax over s ≤ t of (q_t·k_s / √d) v_s   where t is chosen, else 0

Who is chosen is either the caller's to say (`chosen`, by a program: positions whose token occurred earlier,
see `repeated`; then f = 1), or learned: f(x) = sigmoid(x·w), a position is chosen where f ≥ 1/2, as long as
fewer than `budget` have been chosen before it, and the loss max(0, Σ f - budget)/n, in the record, keeps the
wish within the budget. So it costs budget·n, not n².

What differs: the paper keeps the `budget` largest f of a sequence, so that a later token can take an earlier
one's place, and an output depends on what follows. Here the choice is made on the way, first come, first
served; and f multiplies the output, which is what it learns by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.mixer import MultiHead, check_input
from regardant.core.pattern import Causal, split_padding
from regardant.core.record import Record
from regardant.core.rule import HeadShape
from regardant.core.state import State
from regardant.core.supports import Supports
from regardant.core.written import attend_rows

EAGER = 2.0
"""The bias of the wish at the start: whoever is never chosen never learns, so at first all want to be."""


def repeated(tokens: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """The program's choice: positions whose token stood somewhere before."""
    by_token, order = tokens.sort(dim=1, stable=True)
    again = torch.zeros_like(by_token, dtype=torch.bool)
    again[:, 1:] = by_token[:, 1:] == by_token[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)


@dataclass
class SelectiveState(State):
    """Keys and values of all tokens, and how many positions were chosen."""

    inner: State
    chosen: Int[Tensor, "b"]


class SelectiveAttention(MultiHead):
    """Causal softmax attention at chosen positions, at most `budget` of them when the choice is learned."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, time=1.0, memory=1.0, state=1.0
    )

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, budget: int = 256, penalty: float = 1.0, **shared
    ):
        super().__init__(dim, heads, causal=causal, **shared)
        require(budget >= 1, f"budget is {budget}, but at least 1 position can be chosen")
        require(penalty >= 0, f"penalty is {penalty}, but wishes beyond the budget are not rewarded")
        require(
            not self.position.biases,
            f"position is {type(self.position).__name__}, a bias on all logits, but few queries have logits",
        )
        self.budget, self.penalty = budget, penalty
        self.to_choice = nn.Linear(dim, 1)
        nn.init.constant_(self.to_choice.bias, EAGER)

    def forward(
        self, x, context=None, padding=None, *, chosen: Bool[Tensor, "b n"] | None = None, record=None
    ):
        """`chosen` says which positions attend; None leaves it to the layer."""
        self.check_inputs(x, context, padding)
        require(
            chosen is None or (chosen.dtype == torch.bool and chosen.shape == x.shape[:2]),
            f"chosen is {chosen if chosen is None else (chosen.dtype, list(chosen.shape))}, but it is bool "
            f"{list(x.shape[:2])}, True where a position attends",
        )
        q, k, v = self.project(x)
        pattern = self.visible(k.shape[2], across=False, padding=padding)
        heads = self.attend(q, k, v, x=x, pattern=pattern, padding=padding, record=record, chosen=chosen)
        return self.merge(heads, x=x, record=record)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None, chosen=None):
        share, chosen = self._choice(x, padding, record) if chosen is None else (None, chosen)
        if padding is not None:
            chosen = chosen & padding
        count = chosen.sum(dim=1)
        most = max(int(count.max()), 1)
        at = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        rows = at[:, None, :, None].expand(-1, q.shape[1], -1, -1)
        seen = at[..., None] >= torch.arange(k.shape[2], device=q.device)
        real = split_padding(pattern)[1]
        seen = seen if real is None else seen & real.expand(len(k), -1)[:, None]
        # Rows beyond a sample's own count are there for the others' sake, and see nothing.
        seen = seen & (torch.arange(most, device=q.device) < count[:, None])[..., None]
        picked = q.gather(2, rows.expand(-1, -1, -1, q.shape[-1]))
        out = attend_rows(picked, k, v, seen[:, None], scale=self.scale)
        whole = out.new_zeros(*q.shape[:3], v.shape[-1]).scatter(2, rows.expand_as(out), out)
        return whole if share is None else whole * share[:, None, :, None].to(whole.dtype)

    def _wish(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b"]:
        """f, in an accuracy in which a choice does not hang on rounding."""
        exact, linear = torch.promote_types(x.dtype, torch.float32), self.to_choice
        x, weight, bias = (part.to(exact) for part in (x, linear.weight, linear.bias))
        return torch.sigmoid(F.linear(x, weight, bias)[..., 0])

    def _choice(
        self, x: Float[Tensor, "b n c"], padding: Bool[Tensor, "b n"] | None, record: Record | None
    ) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
        share = self._wish(x)
        share = share if padding is None else share * padding
        if record is not None:
            beyond = (share.sum(dim=1) - self.budget).clamp(min=0).mean() / x.shape[1]
            record.add_loss("beyond the budget", self.penalty * beyond)
        wanted = share >= 0.5
        chosen = wanted & (wanted.cumsum(dim=1) <= self.budget)
        if record is not None:
            record.note("chosen", chosen.detach())
        return share, chosen

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        """Attention everywhere, then what was not chosen emptied, token by token."""
        heads, rows = self.rule.reference(q, k, v, pattern=pattern, scale=self.scale), []
        share = torch.sigmoid(self.to_choice(x)[..., 0])
        for sample in range(len(x)):
            left, taken = self.budget, []
            for t in range(x.shape[1]):
                real = padding is None or bool(padding[sample, t])
                takes = real and left > 0 and bool(share[sample, t] >= 0.5)
                left -= takes
                taken.append(share[sample, t] if takes else torch.zeros_like(share[sample, t]))
            rows.append(heads[sample] * torch.stack(taken)[:, None])
        return torch.stack(rows)

    def start(self, batch, *, context=None, padding=None):
        inner = super().start(batch, context=context, padding=padding).inner
        return SelectiveState(0, inner, self.to_q.weight.new_zeros(batch, dtype=torch.long))

    def prefill(self, x):
        self.start(x.shape[0])
        y, (_, k, v) = self(x), self.project(x)
        shape = HeadShape(
            x.shape[0], self.heads, self.kv_heads, self.head_dim, self.head_dim, x.device, k.dtype
        )
        inner = self.rule.start(shape, pattern=Causal(), keys=k, values=v)
        return y, SelectiveState(x.shape[1], inner, self._choice(x, None, None)[1].sum(dim=1))

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x = x_t[:, None]
        q, k, v = self.project(x, offset=state.length)
        pattern = self.visible(state.length + 1, across=False, padding=None)
        heads, inner = self.rule.step(
            q[:, :, 0], k[:, :, 0], v[:, :, 0], state.inner, pattern=pattern, scale=self.scale
        )
        share = self._wish(x_t)
        chosen = (share >= 0.5) & (state.chosen < self.budget)
        heads = heads * (share * chosen)[:, None, None].to(heads.dtype)
        y = self.merge(heads[:, :, None], x=x)[:, 0]
        return y, SelectiveState(state.length + 1, inner, state.chosen + chosen)
