"""SeerAttention: a small gate, taught by the model's own attention, says which blocks of a prompt to read.

"SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs" (arXiv 2410.13276). For each head, with
queries and keys as they are before rotary positions, in blocks of `block` tokens:

    q̄_I = mean_{i∈I} q_i             k̄_J = [max; min; mean]_{j∈J} k_j
    G_IJ = turn(W_q q̄_I) · turn(W_k k̄_J) / √g,    J ≤ I,   at the positions where the blocks begin
    taught by   M_IJ = max_{i∈I, j∈J} softmax(q kᵀ/√d)_ij,  each row divided by its sum:   KL(M ‖ softmax(G))

With g = d there is no W_q, and W_k is a matrix a query head, as released; else W_q is a query head's and W_k
a key head's. At inference each row of blocks keeps its own block and the best (`density`), or all those above
`threshold`; exact attention inside. `regardant.train.seer_gates.learn_gates` teaches the gates.

What differs from the official code: the blocks of a text begin at its first token, not at its padding; and
`choosers="past"`, where the queries of the block before choose, so that no row depends on tokens after it.
Only prompts are pruned: tokens written behind a cache read all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.block_map import block_map, earlier_blocks, pooled_by_block
from regardant.core.errors import require, unknown
from regardant.core.position import Rotary
from regardant.edit.language.block_choice import CHOOSERS, BlockChoice, asked_by
from regardant.edit.language.causal_text import CausalText
from regardant.host.call import Call
from regardant.host.host import host_of
from regardant.host.site import Site


class SeerGate(nn.Module):
    """The gate of one layer: pooled queries and keys → logits of blocks."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, *, block: int, width: int, base: float):
        super().__init__()
        self.block, self.group = block, heads // kv_heads
        whole = width == head_dim
        self.query = None if whole else nn.Parameter(torch.empty(heads, head_dim, width))
        self.key = nn.Parameter(torch.empty(heads if whole else kv_heads, 3 * head_dim, width))
        self.rotary = Rotary(width, base=base)
        for weight in (self.query, self.key):
            if weight is not None:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(
        self, q: Float[Tensor, "b h t d"], k: Float[Tensor, "b g t e"], choosers: str
    ) -> Float[Tensor, "b h t t"]:
        """From what `pool` gave. -inf where a row sees nothing, or where nobody chose."""
        q = asked_by(q, choosers) if self.query is None else asked_by(q, choosers) @ self.query
        share = self.group
        k = k.repeat_interleave(share, 1) @ self.key if self.query is None else (k @ self.key)
        k = k if self.query is None else k.repeat_interleave(share, 1)
        count = q.shape[2]
        # With "past" the queries stand one block back, where they were pooled.
        first = 0 if choosers == "block" else -self.block
        q = self.rotary.turn(q, first, stride=self.block)
        k = self.rotary.turn(k, 0, stride=self.block)
        logits = q @ k.mT * q.shape[-1] ** -0.5
        return logits.masked_fill(~scored(count, choosers, logits.device), -inf)

    def pool(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"]
    ) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b g t e"]]:
        """Means of the queries; maxima, minima and means of the keys."""
        keys = [pooled_by_block(k, self.block, how) for how in ("max", "min", "mean")]
        return pooled_by_block(q, self.block, "mean"), torch.cat(keys, dim=-1)


def scored(count: int, choosers: str, device: torch.device) -> Tensor:
    """Which blocks have a score: all that are seen, the own one only where its queries choose."""
    seen = earlier_blocks(count, device)
    return seen if choosers == "block" else seen.tril(-1)


def taught(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], *, block: int, scale: float, choosers: str
):
    """The target: block maxima of the model's own map, each row divided by its sum over what has a score."""
    maxima = block_map(q, k, block=block, scale=scale)
    maxima = maxima * scored(maxima.shape[-1], choosers, maxima.device)
    return maxima / maxima.sum(-1, keepdim=True).clamp(min=torch.finfo(maxima.dtype).tiny)


def divergence(target: Float[Tensor, "b h t t"], logits: Float[Tensor, "b h t t"]) -> Float[Tensor, ""]:
    """KL(target ‖ softmax(logits)), the mean over the rows that have scores."""
    there = (logits > -inf).any(-1)
    logits, target = logits[there], target[there]
    logs = logits.log_softmax(-1).masked_fill(logits == -inf, 0)
    return (torch.xlogy(target, target) - target * logs).sum(-1).mean()


class SeerGates(nn.Module):
    """The gates of a model's layers, drawn from the seed: `SeerGates.of(model)`."""

    def __init__(
        self, layers: Collection[int], *, heads: int, kv_heads: int, head_dim: int, block: int = 64,
        width: int | None = None, choosers: Literal["block", "past"] = "block", base: float = 10000.0,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if choosers not in CHOOSERS:
            raise unknown("choosers", choosers, CHOOSERS)
        require(block >= 1, f"block is {block}, but a block holds at least 1 token")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.block, self.choosers = block, choosers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.by_layer = nn.ModuleDict(
                {
                    str(layer): SeerGate(
                        heads, kv_heads, head_dim, block=block, width=width or head_dim, base=base
                    )
                    for layer in sorted(layers)
                }
            )

    @classmethod
    def of(cls, model: nn.Module, *, layers: Collection[int] | None = None, **settings: Any) -> SeerGates:
        """Gates that fit a model's own layers (all, or these)."""
        sites = [site for site in host_of(model).sites if site.causal and not site.cross]
        sites = sites if layers is None else [site for site in sites if site.layer in set(layers)]
        require(len(sites) > 0, "the model has no causal attention in these layers")
        kinds = {(site.q_heads, site.kv_heads, site.head_dim) for site in sites}
        require(
            len(kinds) == 1, f"the layers differ in their heads ({sorted(kinds)}): name layers= of one kind"
        )
        heads, kv_heads, head_dim = kinds.pop()
        rotary = getattr(model.config, "rope_parameters", None) or {}
        base = float(rotary.get("rope_theta", 10000.0))
        return cls(
            [site.layer for site in sites], heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            **dict(base=base) | settings,
        )  # fmt: skip

    @property
    def layers(self) -> list[int]:
        return [int(layer) for layer in self.by_layer]

    def at(self, site: Site) -> SeerGate:
        return self.by_layer[str(site.layer)]

    def check(self, site: Site) -> None:
        require(
            str(site.layer) in self.by_layer,
            f"there is no gate for {site}, only for {', '.join(self.by_layer)}: name layers=",
        )
        require(
            (self.heads, self.kv_heads, self.head_dim) == (site.q_heads, site.kv_heads, site.head_dim),
            f"the gates are for {self.heads} query and {self.kv_heads} key heads of {self.head_dim} "
            f"channels, but {site} has {site.q_heads} and {site.kv_heads} of {site.head_dim}",
        )

    def overhead(self, length: int) -> int:
        """Multiplications and additions of a head's gate at a length: pooling, and the products of blocks."""
        count = -(-length // self.block)
        width = next(iter(self.by_layer.values())).key.shape[-1]
        return count**2 * width + 2 * length * self.head_dim


@dataclass(kw_only=True)
class SeerAttention(BlockChoice):
    """Prompts read the blocks that `gates` choose, in the layers that have gates.

    `density` of the visible blocks; or, where `threshold` is given, all whose share of the gate's softmax is
    above it. `block` and the choosers are the gates'.
    """

    families = ("llama", "qwen2")

    gates: SeerGates
    threshold: float | None = None

    def __post_init__(self) -> None:
        require(
            isinstance(self.gates, SeerGates),
            f"gates is {type(self.gates).__name__}, but SeerGates.of(model) is wanted, taught by learn_gates",
        )
        self.block = self.gates.block
        super().__post_init__()
        require(
            self.threshold is None or 0 <= self.threshold < 1,
            f"threshold is {self.threshold}, but it is a share of the gate's softmax: from 0 to below 1",
        )
        if self.layers is None:
            self.layers = self.gates.layers

    def neutral(self) -> bool:
        return self.threshold is None and self.density == 1

    def prepare(self, sites: Sequence[Site]) -> None:
        super().prepare(sites)
        for site in sites:
            if self.touches(site):
                self.gates.check(site)

    def wanted(self, call: Call, text: CausalText, site: Site) -> Float[Tensor, "b h t t"]:
        gate = self.gates.at(site)
        q, k = (x[text.samples][:, :, text.rows] for x in call.unturned())
        return gate(*gate.pool(q.to(gate.key), k.to(gate.key)), self.gates.choosers)

    def choose(self, scores):
        if self.threshold is None:
            return super().choose(scores)
        shares = scores.masked_fill((scores == -inf).all(-1, keepdim=True), 0).softmax(-1)
        count = scores.shape[-1]
        own = torch.eye(count, dtype=torch.bool, device=scores.device)
        return ((shares > self.threshold) | own) & earlier_blocks(count, scores.device)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        gates = dict(layers=range(4), heads=4, kv_heads=2, head_dim=16, block=4)
        return [
            dict(gates=SeerGates(**gates, choosers="past"), density=0.4),
            dict(gates=SeerGates(**gates, choosers="past", width=8, seed=1), density=0.3, layers=[0, -1]),
            dict(gates=SeerGates(**gates, choosers="past"), threshold=0.2),
        ]
