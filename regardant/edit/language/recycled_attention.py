"""Recycled attention: most decoding steps read few keys, chosen by the last step that read all.

"Recycled Attention: Efficient inference for long-context language models" (Xu et al., 2024, arXiv 2411.05787;
its later version is called RefreshKV). Per layer and key head:

    full step     a = attention of the last query to all keys, the largest of the heads that share a key head,
                  smoothed by the largest of `smoothing` neighbours;  C = the `budget` keys with the largest a
    other steps   attention over C alone; the new token's key enters C, the key with the smallest a leaves

The prompt's last query is the first full one. Then every `every`-th step is full; or, with `similarity`, at
every `every`-th step those layers run full whose query (the mean over heads) has turned away from that of
their last full step: cosine below `similarity`.

Keys keep the rotations of their true places. Every key stays in the host's cache, for the next full step to
find: what is saved is reading, which is counted (`reads`); memory is NOT reduced. There is no official code
to compare with. The paper writes new keys back to the full cache at full steps; the host does so at every
step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from regardant.core.errors import require
from regardant.core.selected import rows_at
from regardant.edit.edit import Edit
from regardant.edit.language.causal_text import refuse_unusual
from regardant.edit.language.key_choice import slides
from regardant.host.call import Call
from regardant.host.run import Run
from regardant.host.site import Site


class Reads(NamedTuple):
    """Keys that each sample's decoding steps read, in all layers and key heads, and how many there were."""

    read: Int[Tensor, "b"]
    held: Int[Tensor, "b"]

    @property
    def share(self) -> float:
        return float(self.read.sum() / self.held.sum())


@dataclass
class RecycledAttention(Edit):
    """Full steps every `every` steps (1: always; None: never again after the prompt), `budget` keys else."""

    passes: ClassVar[tuple[str, ...]] = ("decoding",)
    exempt: ClassVar[Mapping[str, str]] = {
        "cache": "it acts on steps behind a cache alone, which then read fewer keys than one pass does"
    }

    budget: int = 96
    every: int | None = 10
    similarity: float | None = None
    smoothing: int = 7

    def __post_init__(self) -> None:
        require(self.budget >= 1, f"budget is {self.budget}, but a step reads at least its own key")
        require(self.every is None or self.every >= 1, f"every is {self.every}, but steps are counted from 1")
        require(
            self.similarity is None or -1 <= self.similarity <= 1,
            f"similarity is {self.similarity}, but a cosine lies between -1 and 1",
        )
        require(
            self.smoothing >= 1 and self.smoothing % 2 == 1,
            f"smoothing is {self.smoothing}, but as many neighbours on both sides make an odd number",
        )

    def neutral(self) -> bool:
        return self.every == 1 and self.similarity is None

    def touches(self, site: Site) -> bool:
        return site.causal and not slides(site) and super().touches(site)

    def stages(self, site: Site) -> frozenset[str]:
        own = super().stages(site)
        return own | {"read"} if own else own

    def reads(self, run: Run) -> Reads:
        """What has been read since the last prompt."""
        kept = run.memory(self)
        require("read" in kept, "no decoding step of this text has come by yet, so nothing was counted")
        return Reads(kept["read"], kept["held"])

    @torch.no_grad()
    def read(self, call: Call, heads: Tensor, weights: Tensor | None, site: Site, run: Run) -> None:
        """The prompt's last query is a full step."""
        if run.decoding:
            return
        refuse_unusual(call, run, self)
        end = call.past + call.queries
        last = torch.full((call.batch,), end - 1, device=call.q.device)
        if run.real is not None and run.real.shape == (call.batch, end):
            last = end - 1 - run.real.to(last.device).flip(1).int().argmax(dim=1)
        rows = (last - call.past).clamp(min=0)
        memory = run.memory(self, site)
        memory |= self._blank(call)
        for row in rows.unique().tolist():
            own = (rows == row).nonzero()[:, 0]
            self._choose(memory, _of(call, own, row), own, end - 1)

    @torch.no_grad()
    def attend(self, call: Call, site: Site, run: Run) -> Float[Tensor, "b h 1 e"]:
        refuse_unusual(call, run, self)
        memory, place = run.memory(self, site), call.past
        if "order" not in memory:
            memory |= self._blank(call)
        full = self._full(memory, call, place)
        everyone, own = bool(full.all()), full.nonzero()[:, 0]
        held = torch.full((call.batch,), call.past + 1, device=full.device)
        if run.real is not None and run.real.shape == (call.batch, call.past + 1):
            held = run.real.to(full.device).sum(dim=1)
        if everyone:
            out = call.fused(call)[0]
            self._choose(memory, call, own, place)
            self._count(run, held * site.kv_heads, held * site.kv_heads)
            return out
        out, there = self._few(memory, call, place)
        if len(own):
            some = _of(call, own)
            out[own] = call.fused(some)[0].to(out.dtype)
            self._choose(memory, some, own, place)
        self._count(run, torch.where(full, held * site.kv_heads, there), held * site.kv_heads)
        return out

    def _blank(self, call: Call) -> dict[str, Tensor]:
        b, device = call.batch, call.q.device
        return {
            "order": torch.full((b, call.site.kv_heads, self.budget), -1, device=device),
            "place": torch.full((b,), -1, device=device),
            "query": call.q.new_zeros(b, call.q.shape[-1]),
        }

    def _full(self, memory: dict[str, Any], call: Call, place: int) -> Bool[Tensor, "b"]:
        """Which samples read all their keys in this step."""
        since = place - memory["place"]
        fresh = memory["place"] < 0
        if self.every is None:
            return fresh
        due = since % self.every == 0
        if self.similarity is not None:
            now = call.q[:, :, 0].mean(dim=1)
            due = due & (functional.cosine_similarity(now, memory["query"], dim=-1) < self.similarity)
        return fresh | due

    def _choose(self, memory: dict[str, Any], call: Call, own: Int[Tensor, "s"], place: int) -> None:
        """The keys with most of the attention of the last query of `call`, whose samples are `own`."""
        group, row = call.site.group, [call.queries - 1]
        scores = call.maps(row)[:, :, 0].unflatten(1, (-1, group)).amax(dim=2)
        side = self.smoothing // 2
        scores = functional.max_pool1d(scores, self.smoothing, stride=1, padding=side)
        scores = scores.masked_fill(~call.visible(row)[:, :, 0].expand(-1, -1, call.keys), -1)
        # Neighbours of a peak are equal by now: the first of them goes first, whatever stands behind.
        top, at = (x[..., : self.budget] for x in scores.sort(dim=-1, descending=True, stable=True))
        order = functional.pad(at.masked_fill(top < 0, -1), (0, self.budget - at.shape[-1]), value=-1)
        memory["order"][own] = order
        memory["place"][own] = place
        memory["query"][own] = call.q[:, :, -1].mean(dim=1)

    def _few(self, memory: dict[str, Any], call: Call, place: int) -> tuple[Tensor, Int[Tensor, "b"]]:
        """Attention to what was chosen and what came since, and how many keys were read."""
        column = torch.arange(self.budget, device=call.q.device)
        since = place - memory["place"]
        new = column >= (self.budget - since)[:, None]
        at = torch.where(new[:, None], place - (self.budget - 1 - column), memory["order"])
        hidden = at < 0
        k, v = (rows_at(x, at.clamp(min=0)) for x in (call.k, call.v))
        q = call.q[:, :, 0].unflatten(1, (call.site.kv_heads, -1))
        logits = (q @ k.mT * call.scaling).masked_fill(hidden[:, :, None], float("-inf"))
        weights = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        out = (weights.to(v.dtype) @ v).flatten(1, 2)[:, :, None]
        return out, (~hidden).sum(dim=(1, 2))

    def _count(self, run: Run, read: Int[Tensor, "b"], held: Int[Tensor, "b"]) -> None:
        kept = run.memory(self)
        kept["read"], kept["held"] = kept.get("read", 0) + read, kept.get("held", 0) + held

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [
            dict(budget=8, every=3),
            dict(budget=6, every=2, similarity=0.9, layers=[0, -1]),
            dict(budget=10, every=None, smoothing=1),
        ]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return dict(every=1)


def _of(call: Call, samples: Int[Tensor, "s"], row: int | None = None) -> Call:
    """Some samples of a call; with `row`, that query alone."""
    q, mask, past = call.q[samples], call.mask, call.past
    mask = mask if mask is None or len(mask) == 1 else mask[samples]
    if row is not None:
        if mask is None:
            keys = torch.arange(call.keys, device=q.device)
            mask = (keys <= past + row)[None, None, None]
        elif mask.shape[2] > 1:
            mask = mask[:, :, row : row + 1]
        q, past = q[:, :, row : row + 1], past + row
    return replace(call, q=q, k=call.k[samples], v=call.v[samples], mask=mask, past=past)
