"""SeerAttention: a small gate, taught by the model's own attention, says which blocks of a prompt to read.

"SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs" (arXiv 2410.13276). For each head, with
queries and keys as they are before rotary positions, in blocks of `block` tokens:

    q̄_I = mean_{i∈I} q_i             k̄_J = [max; min; mean]_{j∈J} k_j
    G_IJ = turn(W_q q̄_I) · turn(W_k k̄_J) / √g,    J ≤ I,   at the positions where the blocks begin
    taught by   M_IJ = max_{i∈I, j∈J} softmax(q kᵀ/√d)_ij,  each row divided by its sum:   KL(M ‖ softmax(G))

With g = d there is no W_q, and W_k is a matrix a query head, as released; else W_q is a query head's and W_k
a key head's. At inference each row of blocks keeps its own block and the best (`density`), or all those above
`threshold`; exact attention inside. `regardant.train.seer_gates.learn_gates` teaches the gates.

With `choosers="row"` it is the form of the later decoding version (SeerAttention-R, arXiv 2506.08889), where
keys alone are pooled: each query i, at its own position, chooses among the blocks before its own, and is
taught its own row of maxima, M_iJ = max_{j∈J} a_ij. No row depends on tokens after it.

What differs from the official code: the blocks of a text begin at its first token, not at its padding; the
own block is always read, and counts; in the second form each query head chooses by itself (there, those that
share keys choose together). Only prompts are pruned: tokens written behind a cache read all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regardant.core.block_map import block_map, earlier_blocks, own_blocks, pooled_by_block
from regardant.core.errors import require
from regardant.core.position import Rotary
from regardant.edit.language.block_choice import BlockChoice, Choosers, check_choosers
from regardant.edit.language.causal_text import CausalText
from regardant.host.call import Call
from regardant.host.host import host_of
from regardant.host.site import Site


class SeerGate(nn.Module):
    """The gate of one layer: queries (pooled, where a block's choose together) and pooled keys → logits of
    blocks. `every`: only every so manyth of those who choose is there."""

    def __init__(
        self, heads: int, kv_heads: int, head_dim: int, *, block: int, width: int, base: float,
        choosers: Choosers = "block",
    ):  # fmt: skip
        super().__init__()
        self.block, self.group, self.choosers = block, heads // kv_heads, choosers
        whole = width == head_dim
        self.query = None if whole else nn.Parameter(torch.empty(heads, head_dim, width))
        self.key = nn.Parameter(torch.empty(heads if whole else kv_heads, 3 * head_dim, width))
        self.rotary = Rotary(width, base=base)
        for weight in (self.query, self.key):
            if weight is not None:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(
        self, q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g t e"], *, every: int = 1
    ) -> Float[Tensor, "b h m t"]:
        """From what `pool` gave. -inf for a block that has no score."""
        q = q if self.query is None else q @ self.query
        k = k.repeat_interleave(self.group, 1) @ self.key if self.query is None else k @ self.key
        k = k if self.query is None else k.repeat_interleave(self.group, 1)
        q = self.rotary.turn(q, 0, stride=every if self.choosers == "row" else every * self.block)
        k = self.rotary.turn(k, 0, stride=self.block)
        logits = q @ k.mT * q.shape[-1] ** -0.5
        seen = self.scored(q.shape[2], k.shape[2], every=every, device=q.device)
        return logits.masked_fill(~seen, -inf)

    def pool(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], *, every: int = 1
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b g t e"]]:
        """The queries, or their means; maxima, minima and means of the keys."""
        q = q if self.choosers == "row" else pooled_by_block(q, self.block, "mean")
        keys = [pooled_by_block(k, self.block, how) for how in ("max", "min", "mean")]
        return q[:, :, ::every], torch.cat(keys, dim=-1)

    def taught(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], *, scale: float, every: int = 1
    ) -> Float[Tensor, "b h m t"]:
        """The target: maxima of the model's own map, each row divided by its sum over what has a score."""
        maxima = block_map(q, k, block=self.block, scale=scale, by_query=self.choosers == "row")
        maxima = maxima[:, :, ::every]
        maxima = maxima * self.scored(*maxima.shape[-2:], every=every, device=maxima.device)
        return maxima / maxima.sum(-1, keepdim=True).clamp(min=torch.finfo(maxima.dtype).tiny)

    def scored(self, rows: int, count: int, *, every: int, device: torch.device) -> Bool[Tensor, "m t"]:
        """Which blocks have a score: those that a row sees, the own one only where all of it chooses."""
        own = torch.arange(0, rows * every, every, device=device)
        if self.choosers == "block":
            return earlier_blocks(own, count)
        return earlier_blocks(own // self.block - 1, count)


def divergence(target: Float[Tensor, "b h m t"], logits: Float[Tensor, "b h m t"]) -> Float[Tensor, ""]:
    """KL(target ‖ softmax(logits)), the mean over the rows that have scores."""
    there = (logits > -inf).any(-1)
    logits, target = logits[there], target[there]
    logs = logits.log_softmax(-1).masked_fill(logits == -inf, 0)
    return (torch.xlogy(target, target) - target * logs).sum(-1).mean()


class SeerGates(nn.Module):
    """The gates of a model's layers, drawn from the seed: `SeerGates.of(model)`."""

    def __init__(
        self, layers: Collection[int], *, heads: int, kv_heads: int, head_dim: int, block: int = 64,
        width: int | None = None, choosers: Choosers = "block", base: float = 10000.0, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        check_choosers(choosers)
        require(block >= 1, f"block is {block}, but a block holds at least 1 token")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.block, self.choosers = block, choosers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            settings = dict(block=block, width=width or head_dim, base=base, choosers=choosers)
            gates = {str(layer): SeerGate(heads, kv_heads, head_dim, **settings) for layer in sorted(layers)}
            self.by_layer = nn.ModuleDict(gates)

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
        """Multiplications and additions of a head's gate at a length: pooling, and products with blocks."""
        count = -(-length // self.block)
        width = next(iter(self.by_layer.values())).key.shape[-1]
        if self.choosers == "row":
            return length * count * width + length * self.head_dim
        return count**2 * width + 2 * length * self.head_dim


@dataclass(kw_only=True)
class SeerAttention(BlockChoice):
    """Prompts read the blocks that `gates` choose, in the layers that have gates.

    `density` of the causal map; or, where `threshold` is given, all whose share of the gate's softmax is
    above it. `block` and the choosers are the gates'. With `sink` the first block is always read, too.
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

    def wanted(self, call: Call, text: CausalText, site: Site) -> Float[Tensor, "b h m t"]:
        gate = self.gates.at(site)
        q, k = (x[text.samples][:, :, text.rows] for x in call.unturned())
        return gate(*gate.pool(q.to(gate.key), k.to(gate.key)))

    def choose(self, scores):
        if self.threshold is None:
            return super().choose(scores)
        shares = scores.masked_fill((scores == -inf).all(-1, keepdim=True), 0).softmax(-1)
        rows, count = scores.shape[-2:]
        own = own_blocks(rows, count, self.block, scores.device)
        blocks = torch.arange(count, device=own.device)
        standing = (blocks == own[:, None]) | (blocks == 0) & self.sink
        return ((shares > self.threshold) | standing) & earlier_blocks(own, count)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        gates = dict(layers=range(4), heads=4, kv_heads=2, head_dim=16, block=4)
        return [
            dict(gates=SeerGates(**gates, choosers="row"), density=0.6),
            dict(gates=SeerGates(**gates, choosers="row", width=8, seed=1), density=0.8, layers=[0, -1]),
            dict(gates=SeerGates(**gates, choosers="row"), threshold=0.2),
            dict(gates=SeerGates(**gates, choosers="row"), density=0.6, sink=True),
        ]
