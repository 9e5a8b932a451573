"""ACT: attention calibration. Later tokens that soak up attention give most of it back.

"Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through
Attention Calibration" (arXiv 2406.15765). For one head's map A, rows the queries:

    s_t = Σ_q A[q,t] / |{q that see t}|             what a token receives on average
    S   = {t : s_t > α / n} without its first        later sinks (the first one is kept: it is of use)
    A'[q,S]   = β A[q,S]
    A'[q,t]   = A[q,t] + (1-β) Σ_S A[q,S] · A[q,t] / Σ_{u∉S} A[q,u]    the freed mass, in proportion

Rows still sum to one. The paper's α is 5 and β 0.4; the first two layers and the last are left alone. Heads
are chosen once for a kind of task, by `kept_heads`: one head at a time is edited, and those that raise the
accuracy of a small held-out set are kept.

In a prompt's pass the sums run over all its rows, so what an early row gives depends on later ones; behind a
cache they run on, and only new rows are edited. The official code takes an absolute threshold from a setting
and edits square maps of batch one; here padding does not count, and columns that fewer than `fewest` queries
see are no sinks: means of few are spikes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.edit.apply import apply
from regardant.edit.edit import Edit
from regardant.host.host import host_of
from regardant.host.run import Run
from regardant.host.site import Site


@dataclass
class ACT(Edit):
    """Calibrated attention at `heads` (layer → query heads; None: all of them in all layers but the first two
    and the last)."""

    exempt: ClassVar[Mapping[str, str]] = {
        "causality": "a prompt's sinks are found by what all its rows give, as in the paper",
        "cache": "behind a cache a row is edited by the sinks known so far, in one pass by all of them",
    }

    alpha: float = 5.0
    beta: float = 0.4
    heads_at: Mapping[int, Collection[int]] | None = None
    fewest: int = 4

    def __post_init__(self) -> None:
        require(self.alpha > 0, f"alpha is {self.alpha}, but a sink receives more than alpha / n: > 0")
        require(0 <= self.beta <= 1, f"beta is {self.beta}, but it is the share that a sink keeps: 0 to 1")
        require(self.fewest >= 1, f"fewest is {self.fewest}, but a mean is of at least one query")

    def neutral(self) -> bool:
        return self.beta == 1

    def prepare(self, sites):
        own = [site for site in sites if not site.cross and self.stack in (None, site.stack)]
        layers = {site.layer for site in own}
        for layer, heads in (self.heads_at or {}).items():
            require(layer in layers, f"heads_at names layer {layer}, but this model has {_listed(layers)}")
            fewest = min(site.q_heads for site in own if site.layer == layer)
            require(
                all(0 <= head < fewest for head in heads),
                f"heads_at names heads {sorted(heads)} of layer {layer}, but it has {fewest}",
            )
        self._last = max(layers, default=0)
        super().prepare(sites)

    def touches(self, site):
        if not super().touches(site):
            return False
        if self.heads_at is not None:
            return bool(self.heads_at.get(site.layer))
        return self.layers is not None or 2 <= site.layer < self._last

    def weights(self, weights, site, run):
        chosen = None if self.heads_at is None else sorted(self.heads_at[site.layer])
        part = weights if chosen is None else weights[:, chosen]
        sinks = self.sinks(part, site, run)
        part = calibrated(part, sinks, beta=self.beta)
        if chosen is None:
            return part
        weights = weights.clone()
        weights[:, chosen] = part
        return weights

    def sinks(self, maps: Float[Tensor, "b h m n"], site: Site, run: Run) -> Bool[Tensor, "b h n"]:
        """The later sinks, by the rows of this pass and of those before it."""
        seen = run.call.visible().expand(len(maps), -1, -1, -1)[:, :1]
        if run.real is not None and not site.cross:
            rows = run.real[:, -maps.shape[2] :]
            seen = seen & rows[:, None, :, None]
        received = (maps * seen).sum(dim=2)
        queries = seen.sum(dim=2).to(maps.dtype)
        memory, first = run.memory(self, site), run.call.first_key
        if "received" in memory:
            gone = first - memory["first"]  # what a sliding cache has dropped since
            for now, name in ((received, "received"), (queries, "queries")):
                before = memory[name][..., gone:]
                now[..., : before.shape[-1]] += before
        memory.update(received=received, queries=queries, first=first)
        return later_sinks(received, queries, alpha=self.alpha, fewest=self.fewest)

    @classmethod
    def examples(cls):
        return [
            dict(alpha=1.5, layers=[0, 1, 2, 3]),
            dict(alpha=1.2, beta=0.0, heads_at={1: [0, 3], 3: [2]}, fewest=2),
        ]

    @classmethod
    def neutral_settings(cls):
        return dict(beta=1.0, layers=[0, 1, 2, 3])


def later_sinks(
    received: Float[Tensor, "b h n"], queries: Float[Tensor, "b #h n"], *, alpha: float, fewest: int = 4
) -> Bool[Tensor, "b h n"]:
    """Tokens that receive more than α / n on average, the first such token excepted."""
    seen = queries > 0
    count = seen.sum(dim=-1, keepdim=True)
    sinks = (received / queries.clamp(min=1) > alpha / count) & (queries >= fewest)
    return sinks & (sinks.cumsum(dim=-1) > 1)


def calibrated(
    maps: Float[Tensor, "b h m n"], sinks: Bool[Tensor, "b h n"], *, beta: float
) -> Float[Tensor, "b h m n"]:
    """Maps whose sinks keep the share β, the rest in proportion to the others. A row of sinks alone stays."""
    at = sinks[:, :, None]
    others = maps.masked_fill(at, 0)
    left = others.sum(dim=-1, keepdim=True)
    freed = (1 - beta) * (maps.sum(dim=-1, keepdim=True) - left)
    changed = torch.where(at, beta * maps, others * (1 + freed / left.clamp(min=1e-30)))
    return torch.where(left > 0, changed, maps)


def kept_heads(
    model: nn.Module, score: Callable[[], float], *, layers: Iterable[int] | None = None, alpha: float = 5.0,
    beta: float = 0.4, fewest: int = 4, progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[int, list[int]]:  # fmt: skip
    """Query heads whose calibration, one at a time, raises `score()` above the unedited model's.

    `score` runs the model on a small held-out set. `layers` are those to search: all but the first two and
    the last. What is kept raises the score by construction: whether it helps is a question for other data.
    """
    sites = {site.layer: site for site in host_of(model).sites if not site.cross}
    search = range(2, max(sites)) if layers is None else list(layers)
    base, kept, done = score(), {}, 0
    total = sum(sites[layer].q_heads for layer in search)
    for layer in search:
        for head in range(sites[layer].q_heads):
            one = ACT(alpha, beta, heads_at={layer: [head]}, fewest=fewest)
            with apply(model, one):
                if score() > base:
                    kept.setdefault(layer, []).append(head)
            done += 1
            progress(done, total)
    return kept


def _listed(layers: Collection[int]) -> str:
    return f"layers {min(layers)} to {max(layers)}" if layers else "none"
