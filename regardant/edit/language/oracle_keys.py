"""The oracle: each query and head reads the keys that have most of its attention.

    row i reads the `budget` keys j ≤ i with the largest q_i·k_j

No choice of as many keys a query captures more attention mass. It computes all scores to find them, and so
costs what dense attention costs and more: a bound to measure others against, not a way to save.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from regardant.core.errors import require
from regardant.edit.language.key_choice import KeyChoice

PAIRS = 2**22
"""Pairs that are looked at at once."""


@dataclass
class OracleKeys(KeyChoice):
    """The best `budget` keys of each query head. None reads all."""

    budget: int | None = 128

    def __post_init__(self) -> None:
        require(
            self.budget is None or self.budget >= 1,
            f"budget is {self.budget}, but a query reads at least 1 key",
        )

    def neutral(self) -> bool:
        return self.budget is None

    def seen(self, text, site):
        visible = text.earlier()
        logits = text.logits().masked_fill(~visible, -inf)
        at = logits.topk(min(self.budget, text.length), dim=-1).indices
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, at, True) & visible

    def mix(self, text, site, run):
        b, h, m, _ = text.q.shape
        own, out = site.group, []
        step = max(1, PAIRS // (b * h * text.length))
        for first in range(0, m, step):
            stop = min(first + step, m)
            end = text.past + stop
            k, v = (x[:, :, :end].repeat_interleave(own, dim=1) for x in (text.k, text.v))
            logits = text.q[:, :, first:stop] @ k.mT * text.scale
            place = torch.arange(text.past + first, end, device=k.device)
            logits = logits.masked_fill(torch.arange(end, device=k.device) > place[:, None], -inf)
            top, at = logits.topk(min(self.budget, end), dim=-1)
            weights = torch.zeros_like(logits).scatter_(-1, at, top.softmax(-1))
            out.append(weights @ v)
        return torch.cat(out, dim=2)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [dict(budget=8), dict(budget=3, layers=[1])]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return dict(budget=None)
