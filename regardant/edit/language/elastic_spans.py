"""MoA's plan at work: each head of a pretrained decoder sees the first block and a span of its own.

"MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression" (Fu et al., 2024, arXiv
2406.14909). Plans come from `regardant.edit.language.span_plan`, after a look at the model by
`regardant.edit.language.attention_influence`; `regardant.core.elastic_spans` has the equation.

Heads that see alike run together, so the time is that of the mean span, not of the widest; a step reads the
keys of its spans and no others. The host's cache still keeps all keys: memory would be saved (really) only by
a cache that drops them head by head, as in the official code. As there, spans are those of the prompt's
length and stay while text is generated. Rules are per key head, since a key that one head of its group needs
cannot be dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.elastic_spans import span_pattern
from regardant.core.errors import require
from regardant.core.head_groups import head_groups, shared_heads, take_heads
from regardant.core.pattern import Causal, PerHead
from regardant.core.plan import attend
from regardant.edit.language.causal_text import CausalText
from regardant.edit.language.key_choice import KeyChoice
from regardant.edit.language.span_plan import SpanPlan
from regardant.host.site import Site


@dataclass
class ElasticSpans(KeyChoice):
    """The spans of `plan`, at `length`, or else at that of each prompt."""

    plan: SpanPlan = field(default_factory=lambda: SpanPlan((((0, 0.5),),)))
    length: int | None = None

    def __post_init__(self) -> None:
        require(
            isinstance(self.plan, SpanPlan),
            f"plan is {type(self.plan).__name__}, but spans come from a SpanPlan",
        )
        require(
            self.length is None or self.length >= 1,
            f"length is {self.length}, but a text has at least 1 token",
        )

    def neutral(self) -> bool:
        return all(alpha >= 0 and beta >= 1 for layer in self.plan.rules for alpha, beta in layer)

    def prepare(self, sites) -> None:
        super().prepare(sites)
        for site in sites:
            if self.touches(site):
                self.plan.blocks(site.layer, site.kv_heads, 1)

    def _pattern(self, site: Site, length: int) -> PerHead:
        spans = self.plan.blocks(site.layer, site.kv_heads, self.length or length)
        own = [span_pattern(span, block=self.plan.block) for span in spans]
        return PerHead([pattern for pattern in own for _ in range(site.group)])

    def seen(self, text, site):
        keys = torch.arange(text.length, device=text.q.device)
        rows = text.places()[:, None]
        patterns = self._pattern(site, text.length).patterns
        return torch.stack([each.allows(rows, keys) for each in patterns])[None] & text.earlier()

    def mix(self, text, site, run):
        memory, step = run.memory(self, site), text.queries == 1 and text.past > 0
        if "length" not in memory:
            memory["length"] = torch.full((run.batch or len(text.q),), text.length, device=text.q.device)
        if not step:
            memory["length"][text.samples] = text.length
        length = int(memory["length"][text.samples][0])
        groups = head_groups(self._pattern(site, length), site.q_heads)
        out = text.v.new_empty(*text.q.shape[:3], text.v.shape[-1])
        for group in groups:
            out[:, list(group.heads)] = self._group(text, site, group, step)
        return out

    def _group(self, text: CausalText, site: Site, group, step: bool) -> Float[Tensor, "b s m e"]:
        shared = shared_heads(group.heads, site.group)
        q = take_heads(text.q, group.heads)
        k, v = take_heads(text.k, shared), take_heads(text.v, shared)
        if not step:
            return attend(q, k, v, Causal() & group.pattern, scale=text.scale, offset=text.past)
        row = torch.tensor([text.past], device=q.device)
        seen = group.pattern.allows(row, torch.arange(text.length, device=q.device))
        first = self.plan.block
        begin = first + int(seen[first:].int().argmax()) if text.length > first else first
        if begin > first:
            k, v = (torch.cat([x[:, :, :first], x[:, :, begin:]], dim=2) for x in (k, v))
        return attend(q, k, v, scale=text.scale)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        apart = SpanPlan((((4, 0.0), (12, 0.0)), ((8, 0.0),), ((2, 0.0), (2, 0.0)), ((16, 0.0),)), block=2)
        return [
            dict(plan=SpanPlan((((6, 0.0),),), block=2)),
            dict(plan=apart),
            dict(plan=SpanPlan((((-2, 0.5),),), block=1), length=20, layers=[0, 2]),
        ]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return dict(plan=SpanPlan((((0, 1.0),),)))
