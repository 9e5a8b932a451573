"""Regions: sets of tokens that stand for themselves by one key and one value (Ren et al., Combiner, 2021).

    key_r = pool_{j in r} k_j
    value_r = Σ_{j in r} a_rj v_j,    a_r = softmax_{j in r}(k_j · pool_{i in r} q_i)

Attention over a query's own list of tokens and regions, under one softmax, is then attention over all tokens:
token j of region r gets p_r a_rj. A form of it says which tokens a query sees itself and which regions see
the rest for it; its fast way is its own, the plain one is here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.errors import require, unknown
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Pattern, split_padding

POOLINGS = ("max", "mean", "sum")


def pool(x: Float[Tensor, "*r t d"], real: Bool[Tensor, "*#r t"] | None, how: str) -> Float[Tensor, "*r d"]:
    """One vector of the real tokens; zeros where there is none."""
    if how == "max":
        return _largest(x, real, lambda rows: rows.amax(-2))
    total = (x if real is None else x.masked_fill(~real[..., None], 0)).sum(-2)
    if how == "sum":
        return total
    return total / (x.shape[-2] if real is None else real.sum(-1, keepdim=True).clamp(min=1))


def running_pool(
    x: Float[Tensor, "*r t d"], real: Bool[Tensor, "*#r t"] | None, how: str
) -> Float[Tensor, "*r t d"]:
    """The pools of the first token, of the first two, and so on."""
    if how == "max":
        return _largest(x, real, lambda rows: rows.cummax(-2).values)
    total = (x if real is None else x.masked_fill(~real[..., None], 0)).cumsum(-2)
    if how == "sum":
        return total
    count = (
        torch.arange(1, x.shape[-2] + 1, device=x.device) if real is None else real.cumsum(-1).clamp(min=1)
    )
    return total / count[..., None]


def _largest(x: Tensor, real: Tensor | None, largest: Callable[[Tensor], Tensor]) -> Tensor:
    if real is None:
        return largest(x)
    found = largest(x.masked_fill(~real[..., None], -inf))
    return found.masked_fill(found == -inf, 0)


def summarise(
    q: Float[Tensor, "*r t d"], k: Float[Tensor, "*r t d"], v: Float[Tensor, "*r t e"],
    real: Bool[Tensor, "*#r t"] | None, *, how: str, scale: float,
) -> tuple[Float[Tensor, "*r d"], Float[Tensor, "*r e"]]:  # fmt: skip
    """A region's key and value."""
    logits = (k @ pool(q, real, how)[..., None])[..., 0] * scale
    if real is None:
        weights = logits.softmax(-1)
    else:
        none = ~real.any(-1, keepdim=True)
        weights = logits.masked_fill(~(real | none), -inf).softmax(-1).masked_fill(none, 0)
    return pool(k, real, how), (weights[..., None, :] @ v)[..., 0, :]


def summarise_running(
    q: Float[Tensor, "*r t d"], k: Float[Tensor, "*r t d"], v: Float[Tensor, "*r t d"],
    real: Bool[Tensor, "*r t"] | None, *, how: str, scale: float,
) -> tuple[Float[Tensor, "*r t d"], Float[Tensor, "*r t d"]]:  # fmt: skip
    """Keys and values of the regions of all tokens before the first (zeros), the second, and so on."""
    asks, key = running_pool(q, real, how), running_pool(k, real, how)
    lead, (t, d) = q.shape[:-2], q.shape[-2:]
    rows = [x.reshape(-1, 1, t, d) for x in (asks, k, v)]
    if real is None:
        value = F.scaled_dot_product_attention(*rows, is_causal=True, scale=scale)
    else:
        seen = real.expand(*lead, t).reshape(-1, 1, 1, t) & real.new_ones(t, t).tril()
        none = ~seen.any(-1, keepdim=True)
        value = F.scaled_dot_product_attention(*rows, seen | none, scale=scale).masked_fill(none, 0)
    value = value.view(*lead, t, d)
    return tuple(F.pad(x[..., :-1, :], (0, 0, 1, 0)) for x in (key, value))


def attend_regions(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"],
    direct: Bool[Tensor, "n n"], regions: Bool[Tensor, "r n"], visible: Bool[Tensor, "n r"],
    real: Bool[Tensor, "b n"] | None, *, how: str, scale: float,
) -> Float[Tensor, "b h n e"]:  # fmt: skip
    """Plainly: `direct` says which tokens a query sees itself, `regions` which tokens are in each region,
    `visible` which regions a query sees. A region without a real token is seen by nobody."""
    real = torch.ones(len(q), q.shape[2], dtype=torch.bool, device=q.device) if real is None else real
    keys, inner = [], []
    for region in regions:
        members = (region & real)[:, None]
        none = ~members.any(-1, keepdim=True)
        logits = (k @ pool(q, members, how)[..., None])[..., 0] * scale
        inner.append(logits.masked_fill(~(members | none), -inf).softmax(-1).masked_fill(none, 0))
        keys.append(pool(k, members, how))
    sees = direct & real[:, None, None, :]
    logits = (q @ k.mT) * scale
    if keys:
        there = (regions & real[:, None]).any(-1)[:, None, None, :]
        logits = torch.cat([logits, (q @ torch.stack(keys, 2).mT) * scale], dim=-1)
        sees = torch.cat([sees, visible & there], dim=-1)
    none = ~sees.any(-1, keepdim=True)
    weights = logits.masked_fill(~(sees | none), -inf).softmax(-1).masked_fill(none, 0)
    own, others = weights.split([k.shape[2], len(keys)], dim=-1)
    return (own + others @ torch.stack(inner, 2) if keys else own) @ v


class RegionAttention(MultiHead):
    """A layer of attention to tokens and regions; `summary` is how queries and keys are pooled."""

    def __init__(self, dim: int, heads: int, *, summary: str = "max", **shared):
        super().__init__(dim, heads, **shared)
        if summary not in POOLINGS:
            raise unknown("summary", summary, POOLINGS)
        require(
            not self.position.biases,
            f"position is {type(self.position).__name__}, a bias between tokens, but regions are none",
        )
        self.summary = summary

    @property
    def pooling(self) -> dict[str, str | float]:
        """How regions are summarised."""
        return {"how": self.summary, "scale": self.head_dim**-0.5 if self.scale is None else self.scale}

    def parts(self, n: int) -> tuple[Bool[Tensor, "n n"], Bool[Tensor, "r n"], Bool[Tensor, "n r"]]:
        """Which tokens each query sees itself; the regions; and which of them each query sees."""
        raise TypeError(f"{type(self).__name__} must define parts")

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        parts = (part.to(q.device) for part in self.parts(k.shape[2]))
        return attend_regions(q, k, v, *parts, real_of(pattern, len(q)), **self.pooling)


def real_of(pattern: Pattern | None, batch: int) -> Bool[Tensor, "b n"] | None:
    """The padding in a pattern, a row a sample."""
    real = split_padding(pattern)[1]
    return None if real is None else real.expand(batch, -1)
