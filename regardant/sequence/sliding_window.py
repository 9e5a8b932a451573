"""Sliding-window attention: softmax over the nearest positions (Beltagy et al., 2020; Child et al., 2019).

A baseline in two lines: a pattern and a name. A query sees positions closer than `window`; when
causal, the last `window` positions, its own included. Linear in the length, and the decoding state
is constant once the window is full.
"""

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Pattern, Window, both
from regardant.core.supports import Supports


class SlidingWindow(MultiHead):
    """Multi-head softmax attention under `Window(window)`, and under `pattern` as well where given."""

    supports = Supports(cross=False, causal_cross=False, time=1.0, memory=1.0, state=0.0)

    def __init__(self, dim: int, heads: int, *, window: int = 256, pattern: Pattern | None = None, **shared):
        require(window >= 1, f"window is {window}, but a window holds at least the query's own position")
        super().__init__(dim, heads, pattern=both(pattern, Window(window)), **shared)
        self.window = window
