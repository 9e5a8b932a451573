"""Branch, attend, mix (Zhang et al., "BAM! Just Like That: Simple and Efficient Parameter Upcycling for
Mixture of Experts", 2024, arXiv:2408.08274): language models of parallel blocks, and mixtures made of them.

    u = norm(x),   y = x + Attn(u) + FFN(u)                                           a dense model
                   y = x + Σ_i r_i(u) Attn_i(u) + Σ_{j ∈ top k of s(u)} s_j(u) FFN_j(u)     a mixture

with r = softmax(W_A u) over all attention experts and s = softmax(W_F u) over all feed-forward experts, of
which k run. Copies of a seed model learn a domain each; `upcycle` makes a mixture of them:

    full        attention experts with keys and values of their own
    kv_shared   attention experts on the mean of the copies' keys and values
    btx         one attention, the mean of the copies': feed-forward experts alone (Branch-Train-MiX)

Embeddings, norms and head are the mean of the copies', routers start at random. The weights of the k
experts are not renormalised, so that at first a top-1 mixture of like copies shrinks the feed-forward
part by that one weight. The record gets the loss "balance", balance · N Σ_j f_j P_j a layer, of the
feed-forward router alone: f_j is the share of the choices that fell on j, P_j its mean probability. The
paper's weight for it is not known to us. There is no official code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.averaged import averaged
from regardant.core.errors import require, unknown
from regardant.core.mixer import MultiHead
from regardant.core.network import Example, Network
from regardant.core.record import Record
from regardant.sequence.bam_upcycling import SoftMixtureOfAttention

VARIANTS = {"full": "own", "kv_shared": "shared", "btx": "dense"}
"""What becomes of attention: experts with keys of their own, with shared keys, or none."""


class FeedForward(nn.Module):
    def __init__(self, dim: int, expansion: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, expansion * dim), nn.Linear(expansion * dim, dim)

    def forward(self, u: Float[Tensor, "*b c"], *, record: Record | None = None) -> Float[Tensor, "*b c"]:
        return self.outer(F.gelu(self.inner(u)))

    reference = forward


class SparseFeedForward(nn.Module):
    """Feed-forward experts, of which `top_k` run for a token, weighed by the router's probabilities."""

    def __init__(self, dim: int, expansion: int, *, experts: int, top_k: int, balance: float):
        super().__init__()
        require(1 <= top_k <= experts, f"top_k is {top_k}, but the router chooses 1 to {experts} experts")
        require(balance >= 0, f"balance is {balance}, but the weight of a loss is not negative")
        self.top_k, self.balance = top_k, balance
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(dim, expansion) for _ in range(experts))

    def route(self, u: Float[Tensor, "t c"]) -> tuple[Float[Tensor, "t e"], Int[Tensor, "t k"]]:
        """The probabilities of all experts, and the chosen ones; ties go to the first."""
        exact = torch.promote_types(u.dtype, torch.float32)
        probability = F.linear(u.to(exact), self.router.weight.to(exact)).softmax(-1)
        return probability, probability.sort(dim=-1, descending=True, stable=True).indices[:, : self.top_k]

    def forward(self, u: Float[Tensor, "*b c"], *, record: Record | None = None) -> Float[Tensor, "*b c"]:
        flat = u.flatten(0, -2)
        probability, chosen = self.route(flat)
        out = torch.zeros_like(flat)
        for which, expert in enumerate(self.experts):
            rows = (chosen == which).any(-1).nonzero()[:, 0]
            if len(rows):
                own = expert(flat[rows]) * probability[rows, which, None].to(flat.dtype)
                out = out.index_add(0, rows, own)
        if record is not None:
            count = len(self.experts)
            load = F.one_hot(chosen, count).sum(1).to(probability.dtype).mean(0) / self.top_k
            record.add_loss("balance", self.balance * count * (load * probability.mean(0)).sum())
            record.note("feed-forward experts", chosen.unflatten(0, u.shape[:-1]))
        return out.view_as(u)

    def reference(self, u: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        share = (u @ self.router.weight.mT).softmax(-1)
        least = share.topk(self.top_k, dim=-1).values[..., -1:]
        share = share * (share >= least)
        return sum(share[..., which, None] * expert(u) for which, expert in enumerate(self.experts))


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + feed_forward(norm(x)), both from the same norm."""

    def __init__(self, dim: int, attention: nn.Module, feed_forward: nn.Module):
        super().__init__()
        self.norm, self.attention, self.feed_forward = nn.LayerNorm(dim), attention, feed_forward

    def forward(self, x: Float[Tensor, "b n c"], *, record: Record | None = None) -> Float[Tensor, "b n c"]:
        u = self.norm(x)
        return x + self.attention(u, record=record) + self.feed_forward(u, record=record)

    def reference(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        u = self.norm(x)
        return x + self.attention.reference(u) + self.feed_forward.reference(u)


class ParallelTransformer(Network):
    """Tokens [b, n] → logits over the next token [b, n, vocabulary], by causal parallel blocks.

    As it comes it is dense. `experts` makes feed-forward experts, and `attention` attention experts as
    well: with "own" keys, or "shared" ones.
    """

    def __init__(
        self, vocabulary: int, dim: int, heads: int, *, layers: int = 2, expansion: int = 4,
        kv_heads: int | None = None, position: str = "rotary", experts: int = 1, top_k: int = 1,
        attention: Literal["dense", "own", "shared"] = "dense", balance: float = 0.01,
    ):  # fmt: skip
        super().__init__()
        require(layers >= 1, f"layers is {layers}, but a network has at least one")
        require(experts >= 1, f"experts is {experts}, but there is at least 1")
        if attention not in VARIANTS.values():
            raise unknown("attention", attention, VARIANTS.values())
        self.made_with = {
            "vocabulary": vocabulary, "dim": dim, "heads": heads, "layers": layers, "expansion": expansion,
            "kv_heads": kv_heads, "position": position,
        }  # fmt: skip
        shared = {"causal": True, "kv_heads": kv_heads, "position": position}

        def make_attention() -> nn.Module:
            if attention == "dense":
                return MultiHead(dim, heads, **shared)
            return SoftMixtureOfAttention(dim, heads, experts=experts, keys=attention, **shared)

        def make_feed_forward() -> nn.Module:
            if experts == 1:
                return FeedForward(dim, expansion)
            return SparseFeedForward(dim, expansion, experts=experts, top_k=top_k, balance=balance)

        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            ParallelBlock(dim, make_attention(), make_feed_forward()) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for own in (
            {},
            {"experts": 3, "attention": "own", "kv_heads": 1},
            {"experts": 3, "attention": "shared", "top_k": 2},
            {"experts": 2, "top_k": 2, "position": "alibi"},
        ):
            length = int(torch.randint(1, 20, (), generator=generator))
            tokens = torch.randint(13, (3, length), generator=generator)
            yield Example({"vocabulary": 13, "dim": 16, "heads": 2, **own}, (tokens,))

    def forward(
        self, tokens: Int[Tensor, "b n"], *, record: Record | None = None
    ) -> Float[Tensor, "b n vocabulary"]:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, record=record)
        return self.head(self.norm(x))

    def reference(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocabulary"]:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block.reference(x)
        return self.head(self.norm(x))


def upcycle(
    models: Sequence[ParallelTransformer], *, variant: str = "full", top_k: int = 1, balance: float = 0.01
) -> ParallelTransformer:
    """A mixture of dense copies of one seed, an expert each."""
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    require(len(models) >= 2, f"models has {len(models)}, but a mixture is made of at least two copies")
    first = models[0]
    require(
        all(model.made_with == first.made_with for model in models),
        "models are made differently: a mixture is made of copies of one seed",
    )
    dense = all(isinstance(block.feed_forward, FeedForward) for model in models for block in model.blocks)
    require(dense, "models hold a mixture, but it is made of dense ones")
    middle, kind = averaged(models), VARIANTS[variant]
    new = ParallelTransformer(
        **first.made_with, experts=len(models), top_k=top_k, attention=kind, balance=balance
    ).to(first.head.weight)
    for name in ("embedding", "norm", "head"):
        getattr(new, name).load_state_dict(getattr(middle, name).state_dict())
    for depth, block in enumerate(new.blocks):
        copies = [model.blocks[depth] for model in models]
        block.norm.load_state_dict(middle.blocks[depth].norm.state_dict())
        if kind == "dense":
            block.attention.load_state_dict(middle.blocks[depth].attention.state_dict())
        else:
            block.attention = SoftMixtureOfAttention.upcycled([copy.attention for copy in copies], keys=kind)
        for expert, copy in zip(block.feed_forward.experts, copies):
            expert.load_state_dict(copy.feed_forward.state_dict())
    return new
