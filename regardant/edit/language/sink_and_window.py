"""Sinks and a window: each query reads the first few tokens and the last ones before it.

The choice of "Efficient Streaming Language Models with Attention Sinks" (Xiao et al., 2023, arXiv
2309.17453), as the yardstick of every choice that looks at the keys:

    row i reads j ≤ i   where   j < sinks   or   i - j < window

What differs from the paper: the keys keep the rotations of their true places, as in all edits here, while
there a cache that rolls numbers its keys anew; up to the length that the model was trained for, true places
are the fair comparison. And the host's cache keeps all keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from regardant.core import plan
from regardant.core.errors import require
from regardant.core.pattern import Causal, Sink, Window
from regardant.edit.language.key_choice import KeyChoice


@dataclass
class SinkAndWindow(KeyChoice):
    """`budget` keys a query: the first `sinks`, and the last of those before it. None reads all."""

    budget: int | None = 128
    sinks: int = 4

    def __post_init__(self) -> None:
        require(self.sinks >= 0, f"sinks is {self.sinks}, but tokens are counted from 0")
        require(
            self.budget is None or self.budget > self.sinks,
            f"budget is {self.budget}, but {self.sinks} sinks and the query's own token do not fit in it",
        )

    def neutral(self) -> bool:
        return self.budget is None

    @property
    def window(self) -> int:
        return self.budget - self.sinks

    @property
    def pattern(self):
        return (
            Causal() & (Sink(self.sinks) | Window(self.window))
            if self.sinks
            else Causal() & Window(self.window)
        )

    def seen(self, text, site):
        keys = torch.arange(text.length, device=text.q.device)
        return self.pattern.allows(text.places()[:, None], keys)[None, None]

    def mix(self, text, site, run):
        q, k, v, past = text.q, text.k, text.v, text.past
        if text.queries == 1:  # a step reads what it sees and no more
            if text.length > self.budget:
                recent = text.length - self.window
                k, v = (torch.cat([x[:, :, : self.sinks], x[:, :, recent:]], dim=2) for x in (k, v))
            return plan.attend(q, k, v, scale=text.scale)
        return plan.attend(q, k, v, self.pattern, scale=text.scale, offset=past)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [dict(budget=12, sinks=2), dict(budget=8, sinks=0, layers=[1, -1]), dict(budget=9)]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return dict(budget=None)
