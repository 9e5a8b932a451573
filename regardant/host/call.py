"""One call of an attention: its queries, keys and values as the host computed them, and the same
arithmetic written out, for those who want to see or change what is in between.

    logits  = cap(q kᵀ · scaling + position bias) + what the host's mask adds
    weights = softmax(logits, over the visible keys)         in float32, as transformers' eager attention
    heads   = weights · v
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from regardant.core.errors import require
from regardant.host.site import Site

Rows = slice | Sequence[int]
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""What two ways of computing the same heads may differ by, as a share of the largest."""


@dataclass
class Call:
    """What an attention was asked. `fused` runs the host's own implementation on the present q, k, v.

    `mask` is as the host gave it: bool (True is visible), or float to be added, or None: `causal` then says
    whether a query sees only keys up to its own place, counted from the first (`fused` means the same).
    """

    site: Site
    q: Float[Tensor, "b h m d"]
    k: Float[Tensor, "b g n d"]
    v: Float[Tensor, "b g n e"]
    mask: Tensor | None
    scaling: float
    causal: bool
    fused: Callable[[Call], tuple[Float[Tensor, "b h m e"], Tensor | None]] = field(repr=False)
    bias: Float[Tensor, "#b #h m n"] | None = None
    cap: float | None = None
    sinks: Float[Tensor, "h"] | None = None
    """A logit per head that takes part in the softmax and has no value."""
    dropout: float = 0.0
    past: int = 0
    """Tokens before the first query (0 where there is no cache)."""
    turned_back: Callable[[Call], tuple[Tensor, Tensor] | None] | None = field(default=None, repr=False)

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def queries(self) -> int:
        return self.q.shape[2]

    @property
    def keys(self) -> int:
        return self.k.shape[2]

    @property
    def first_key(self) -> int:
        """The place in the text of the first key: above 0 where a sliding cache has dropped some."""
        return 0 if self.site.cross else max(self.past + self.queries - self.keys, 0)

    def places(self) -> Int[Tensor, "m"]:
        """The queries' own places among the keys: which column is a row's own token."""
        first = self.past - self.first_key
        return torch.arange(first, first + self.queries, device=self.q.device)

    def visible(self, rows: Rows | None = None) -> Bool[Tensor, "#b #h m n"]:
        """Which keys these queries may look at."""
        if self.mask is None:
            m, n, device = self.queries, self.keys, self.q.device
            row = torch.arange(m, device=device)
            row = row if rows is None else row[_index(rows, device)]
            if not self.causal or m == 1:
                return torch.ones(1, 1, len(row), n, dtype=torch.bool, device=device)
            return (torch.arange(n, device=device) <= row[:, None])[None, None]
        mask = self.mask[..., : self.keys]
        mask = mask if rows is None else mask[:, :, _index(rows, mask.device)]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2

    def logits(
        self, rows: Rows | None = None, heads: Sequence[int] | None = None
    ) -> Float[Tensor, "b h m n"]:
        """Scores before the mask, position bias included, of these queries and query heads (all)."""
        index = None if heads is None else torch.as_tensor(list(heads), device=self.q.device)
        q, k = self.q, self.k
        if rows is not None:
            q = q[:, :, _index(rows, q.device)]
        if index is not None:
            q, k = q[:, index], k[:, index // self.site.group]
        elif k.shape[1] != q.shape[1]:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = q @ k.transpose(-1, -2) * self.scaling
        if self.cap is not None:
            scores = torch.tanh(scores / self.cap) * self.cap
        for added in (self.bias, self._added()):
            if added is not None:
                scores = scores + _part(added, rows, index).to(scores.dtype)
        return scores

    def weights(
        self, logits: Float[Tensor, "b h m n"], rows: Rows | None = None, heads: Sequence[int] | None = None
    ) -> Float[Tensor, "b h m n"]:
        """The softmax of these logits over the visible keys, in float32; a row that sees nothing is even."""
        visible = self.visible(rows)
        if heads is not None and visible.shape[1] > 1:
            visible = visible[:, list(heads)]
        logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
        if self.sinks is None:
            return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        sinks = self.sinks if heads is None else self.sinks[list(heads)]
        sinks = sinks[None, :, None, None].to(logits).expand(*logits.shape[:3], 1)
        return torch.cat([logits, sinks], -1).softmax(
            -1, dtype=torch.promote_types(logits.dtype, torch.float32)
        )[..., :-1]

    def unturned(self) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b g m d"]]:
        """The queries of this pass and the keys of the same tokens, before rotary positions came in."""
        found = None if self.turned_back is None else self.turned_back(self)
        require(
            found is not None,
            f"{type(self.site.module).__name__} at {self.site} has no rotary positions that could be taken "
            "back",
        )
        return found

    def sharpen(self, factor: float | Float[Tensor, "#b #h #m 1"]) -> None:
        """Multiply all logits, the biases on them included, without leaving the fused path."""
        require(self.cap is None, "logits under a soft cap cannot be scaled from outside")
        self.q = self.q * factor
        self.bias = None if self.bias is None else self.bias * factor
        if self.mask is not None and self.mask.dtype != torch.bool:
            hidden = self.mask <= torch.finfo(self.mask.dtype).min / 2
            self.mask = torch.where(hidden, self.mask, self.mask * factor)

    def maps(self, rows: Rows | None = None, heads: Sequence[int] | None = None) -> Float[Tensor, "b h m n"]:
        """The attention of these queries and query heads, computed from q and k: the forward stays fused."""
        return self.weights(self.logits(rows, heads), rows, heads)

    def mix(self, weights: Float[Tensor, "b h m n"]) -> Float[Tensor, "b h m e"]:
        """Weights times values."""
        weights = weights.to(self.v.dtype)
        if self.dropout:
            weights = functional.dropout(weights, self.dropout)
        v = self.v
        return weights @ (
            v if v.shape[1] == weights.shape[1] else v.repeat_interleave(self.site.group, dim=1)
        )

    def unlike(self, heads: Float[Tensor, "b h m e"] | None = None, *, last: int = 16) -> tuple[float, bool]:
        """How far the last rows of `heads` (as the host's own implementation computes them, if not given)
        are from this arithmetic, and whether that is more than rounding."""
        rows = slice(max(self.queries - last, 0), self.queries)
        with torch.no_grad():
            heads = self.fused(self)[0] if heads is None else heads
            seen = self.visible(rows).any(-1, keepdim=True)
            gap = float(((self.mix(self.maps(rows)) - heads[:, :, rows]) * seen).abs().max())
            room = ROUNDING.get(heads.dtype, 5e-2) * max(1.0, float(heads.abs().max()))
        return gap, gap > room

    def _added(self) -> Tensor | None:
        """What a float mask adds where it does not forbid."""
        if self.mask is None or self.mask.dtype == torch.bool:
            return None
        mask = self.mask[..., : self.keys]
        return mask.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, 0)


def _index(rows: Rows, device: torch.device) -> slice | Tensor:
    return rows if isinstance(rows, slice) else torch.as_tensor(list(rows), device=device)


def _part(added: Tensor, rows: Rows | None, heads: Tensor | None) -> Tensor:
    """The rows and heads of something that may be shared along both axes."""
    if rows is not None and added.shape[-2] > 1:
        added = added[:, :, _index(rows, added.device)]
    return added if heads is None or added.shape[1] == 1 else added[:, heads]
