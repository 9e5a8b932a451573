"""Sparse-GIN: an adapter that turns the attention of a frozen layer into a sparse graph, and takes steps of a
graph isomorphism network on it (Buehler, "Graph-Aware Isomorphic Attention for Adaptive Dynamics in
Transformers", 2025, arXiv:2501.02393).

    a    = mean of the layer's maps over heads, or their sum cut at 1, or σ(MLP of the heads' weights)
    edge = σ(steepness (a - threshold)), 0 where that is no more than `cut`; causal, with itself or not
    m_i  = ε x_i + Σ_{j ≤ i, edge_ij > 0} x_j               or Σ_j edge_ij x_j where `weighted`
    x    = x + relu(m + W_2 relu(LN(W_1 m)))                  `layers` times, in a width of its own
    h    = h + s · norm(W_out x)                              x begins as W_in h

h is the residual stream behind attention, before the MLP; s, a trained number, starts at `scale`, which the
paper lets run linearly over the layers of the host (`scales`). With s = 0 the host is what it was. A token
sums over as many neighbours as it has edges; the norms are there for that.

What differs from the official code: there an edge runs from the token that attends to the one attended, and
a filter behind it keeps edges from earlier to later tokens only, so that of its causal graph nothing but the
edges of tokens to themselves is left; here row i receives from j ≤ i, as the paper says. No dropout; the
other kinds of graph layers, one network a head and scaling by distance are not offered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regardant.core.checks import check_input
from regardant.core.errors import require, unknown
from regardant.core.network import Example, Network

Adjacency = Literal["mean", "sum", "learned"]
ADJACENCIES = ("mean", "sum", "learned")
HIDDEN = 16
"""Of the MLP that learns what the heads' weights make together."""


def scales(layers: int, *, first: float, last: float) -> list[float]:
    """What s starts at, layer by layer."""
    require(layers >= 1, f"layers is {layers}, but a host has at least 1")
    return [first + (last - first) * layer / max(layers - 1, 1) for layer in range(layers)]


class GraphStep(nn.Module):
    """x + relu(m + W_2 relu(LN(W_1 m))) on what the neighbours sum up to."""

    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.epsilon = nn.Parameter(torch.zeros(()))
        self.inner, self.outer = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.norm = nn.LayerNorm(expansion * width)

    def forward(self, x: Float[Tensor, "b n w"], edges: Float[Tensor, "b n n"]) -> Float[Tensor, "b n w"]:
        return self.behind(x, self.epsilon * x + edges @ x)

    def behind(self, x: Tensor, message: Tensor) -> Tensor:
        return x + F.relu(message + self.outer(F.relu(self.norm(self.inner(message)))))


class SparseGIN(Network):
    """Hidden states [b, n, dim] and the layer's maps [b, heads, n, n] → hidden states.

    `padding` [b, n] is True where a token is real.
    """

    def __init__(
        self, dim: int, heads: int, *, width: int = 128, layers: int = 1, expansion: int = 2,
        adjacency: Adjacency = "mean", steepness: float = 10.0, threshold: float = 0.5, cut: float = 0.5,
        self_loops: bool = True, weighted: bool = False, scale: float = 0.5,
    ):  # fmt: skip
        super().__init__()
        for name, value in (("dim", dim), ("heads", heads), ("width", width), ("layers", layers)):
            require(value >= 1, f"{name} is {value}, but it is at least 1")
        require(expansion >= 1, f"expansion is {expansion}, but an MLP is at least as wide as its input")
        require(steepness > 0, f"steepness is {steepness}, but a sigmoid rises")
        require(0 <= cut < 1, f"cut is {cut}, but edges are between 0 and 1, and some must be left")
        if adjacency not in ADJACENCIES:
            raise unknown("adjacency", adjacency, ADJACENCIES)
        self.dim, self.heads, self.adjacency = dim, heads, adjacency
        self.steepness, self.threshold, self.cut = steepness, threshold, cut
        self.self_loops, self.weighted = self_loops, weighted
        self.together = None
        if adjacency == "learned":
            self.together = nn.Sequential(nn.Linear(heads, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.into, self.out = nn.Linear(dim, width), nn.Linear(width, dim)
        self.steps = nn.ModuleList(GraphStep(width, expansion) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for own, padded in (
            ({}, False),
            ({"layers": 2, "weighted": True, "threshold": 0.2}, True),
            ({"adjacency": "sum", "self_loops": False}, True),
            ({"adjacency": "learned", "weighted": True, "cut": 0.0}, True),
        ):
            n = 7
            logits = 3 * torch.randn(3, 2, n, n, generator=generator, dtype=torch.float64)
            maps = logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
            hidden = torch.randn(3, n, 6, generator=generator, dtype=torch.float64)
            at = torch.arange(n)
            real = {"padding": torch.stack([at < 4, at >= 2, at == at])} if padded else {}
            yield Example({"dim": 6, "heads": 2, "width": 5, **own}, (hidden, maps), real)

    def edges(
        self, maps: Float[Tensor, "b h n n"], padding: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n n"]:
        """The graph: how much row i takes of token j ≤ i, most of it nothing."""
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        if self.together is not None:
            weights = [each.to(maps.dtype) for each in self.together.parameters()]
            hidden = F.relu(F.linear(maps.movedim(1, -1), *weights[:2]))
            joint = torch.sigmoid(F.linear(hidden, *weights[2:])[..., 0])
        else:
            joint = maps.mean(1) if self.adjacency == "mean" else maps.sum(1).clamp(max=1)
        edges = torch.sigmoid(self.steepness * (joint - self.threshold))
        # σ of nothing is not nothing: the order and the padding must hold behind it too.
        seen = torch.ones(maps.shape[-2:], dtype=torch.bool, device=maps.device)
        seen = seen.tril(0 if self.self_loops else -1) & (edges > self.cut)
        if padding is not None:
            seen = seen & padding[:, None]
        return edges.masked_fill(~seen, 0) if self.weighted else seen.to(edges.dtype)

    def forward(
        self, hidden: Float[Tensor, "b n c"], maps: Float[Tensor, "b h n n"],
        padding: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n c"]:  # fmt: skip
        self.check(hidden, maps, padding)
        edges, x = self.edges(maps, padding).to(hidden.dtype), self.into(hidden)
        for step in self.steps:
            x = step(x, edges)
        return hidden + self.scale * self.norm(self.out(x))

    def reference(
        self, hidden: Float[Tensor, "b n c"], maps: Float[Tensor, "b h n n"],
        padding: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n c"]:  # fmt: skip
        self.check(hidden, maps, padding)
        x = self.into(hidden)
        for step in self.steps:
            rows = []
            for sample in range(len(x)):
                real = None if padding is None else padding[sample]
                rows.append(
                    [self._message(step, x[sample], maps[sample], i, real) for i in range(x.shape[1])]
                )
            x = step.behind(x, torch.stack([torch.stack(row) for row in rows]))
        return hidden + self.scale * self.norm(self.out(x))

    def _message(
        self, step: GraphStep, x: Float[Tensor, "n w"], maps: Float[Tensor, "h n n"], i: int,
        real: Bool[Tensor, " n"] | None,
    ) -> Float[Tensor, " w"]:  # fmt: skip
        """m_i, edge by edge."""
        message = step.epsilon * x[i]
        for j in range(i + 1 if self.self_loops else i):
            if real is not None and not real[j]:
                continue
            if self.together is not None:
                joint = torch.sigmoid(self.together(maps[:, i, j]))[0]
            else:
                joint = maps[:, i, j].sum() / len(maps)
                joint = joint if self.adjacency == "mean" else (joint * len(maps)).clamp(max=1)
            edge = 1 / (1 + torch.exp(-self.steepness * (joint - self.threshold)))
            if edge > self.cut:
                message = message + (edge * x[j] if self.weighted else x[j])
        return message

    def check(self, hidden: Tensor, maps: Tensor, padding: Tensor | None) -> None:
        check_input("hidden", hidden, "batch, length, width", self.dim, self.into.weight)
        batch, length, _ = hidden.shape
        wanted = (batch, self.heads, length, length)
        require(
            maps.shape == wanted, f"maps is {tuple(maps.shape)}, but of these hidden states it is {wanted}"
        )
        require(
            padding is None or (padding.dtype == torch.bool and padding.shape == (batch, length)),
            f"padding is {'' if padding is None else (padding.dtype, tuple(padding.shape))}, but it is bool "
            f"{(batch, length)}, True where real",
        )
