"""Whether the machine was left to us: what was measured beside other work is measured again.

Other work is not only ours: on a virtual machine a neighbour may hold the shared cache for minutes, so the
best that was ever seen on this machine is the measure, not the best of this run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from regardant.compare.clock import clock

Found = TypeVar("Found")

ENOUGH = 0.85
ATTEMPTS = 3


class Quiet:
    """Watches a small attention, which wants cores and cache: how long it takes now against `best`, the
    shortest known on this machine."""

    def __init__(self, best: float = float("inf")) -> None:
        self._qkv = [torch.randn(1, 8, 512, 64) for _ in range(3)]
        self.best = best
        self.share()

    def share(self) -> float:
        """The part of the machine that we have, near 1 when nobody else wants it."""
        probe = {"attention": lambda: scaled_dot_product_attention(*self._qkv, is_causal=True)}
        found = next(clock(probe, budget=0, least=40))[1]
        self.best = min(self.best, found.median)
        return self.best / found.median

    def watch(self, measure: Callable[[], Found]) -> tuple[Found, float]:
        """A measurement, and the least share before and after it; the quietest of a few attempts."""
        attempts = []
        while len(attempts) < ATTEMPTS and (not attempts or attempts[-1][1] < ENOUGH):
            before = self.share()
            found = measure()
            attempts.append((found, min(before, self.share())))
        return max(attempts, key=lambda attempt: attempt[1])
