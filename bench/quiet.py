"""Whether the machine was left to us: what was measured beside other work is measured again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from regardant.compare.clock import clock

Found = TypeVar("Found")

ENOUGH = 0.85
ATTEMPTS = 3


class Quiet:
    """Watches a small product: how long it takes at best, and how long in the middle of other things."""

    def __init__(self) -> None:
        self._left, self._right = torch.randn(512, 512), torch.randn(512, 512)
        self._best = float("inf")
        self.share()

    def share(self) -> float:
        """The part of the machine that we have, near 1 when nobody else wants it."""
        found = next(clock({"product": lambda: torch.mm(self._left, self._right)}, budget=0, least=40))[1]
        self._best = min(self._best, found.best)
        return self._best / found.median

    def watch(self, measure: Callable[[], Found]) -> tuple[Found, float]:
        """A measurement, and the least share before and after it; the quietest of a few attempts."""
        attempts = []
        while len(attempts) < ATTEMPTS and (not attempts or attempts[-1][1] < ENOUGH):
            before = self.share()
            found = measure()
            attempts.append((found, min(before, self.share())))
        return max(attempts, key=lambda attempt: attempt[1])
