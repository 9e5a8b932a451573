"""HiP: each block of queries finds its keys by halving neighbourhoods of keys, then attends to them exactly.

"HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning" (Lee et al., 2024, arXiv
2406.09827). For queries in blocks of `query_block`, and keys in blocks of `key_block`:

    search     keys between sinks and window → `regardant.core.block_search` → the best blocks of keys
    attention  softmax over sinks, window and these blocks, each query seeing keys up to itself

in O(T log T) products and memory linear in T, with no n × n mask anywhere. The first layers stay dense, as in
the paper. `budget` counts all keys that a query reads; a text of no more tokens is attended densely.

In a prompt all queries of a block choose for it, as in the paper, so that what a query reads depends on
tokens up to `query_block` - 1 after it. The prompt is all there, and what is generated behind it sees no
future; but a loss measured on the prompt's own tokens peeks. With `query_block=1` each query chooses for
itself, causally, at the price of more gathering. A step of decoding has one query; it searches every
`refresh` steps, and in between the window grows, so that no key falls between window and choice.

What differs from the official code (its draft in numpy, v1.1): there every second query of a block chooses,
and a node is represented by its first block (here `representative="first"`); places count from a text's first
token, not from its padding; scores are not reused from round to round. Selection carries no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from regardant.core.block_search import REPRESENTATIVES, Found, attend_gathered, search_blocks
from regardant.core.errors import require, unknown
from regardant.edit.language.causal_text import CausalText
from regardant.edit.language.key_choice import KeyChoice
from regardant.host.run import Run
from regardant.host.site import Site


@dataclass
class HiPAttention(KeyChoice):
    """`budget` keys a query, `sinks` and `window` among them. None reads all."""

    budget: int | None = 512
    sinks: int = 4
    window: int = 32
    query_block: int = 32
    key_block: int = 2
    representative: Literal["middle", "first"] = "middle"
    shared: bool = False
    """Whether the query heads that share keys choose together."""
    refresh: int = 1
    """Decoding searches every so many steps."""
    dense_layers: int = 3
    """The first so many layers stay as they are, where `layers` does not choose."""

    def __post_init__(self) -> None:
        for name in ("window", "query_block", "key_block", "refresh"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, but it is at least 1")
        for name in ("sinks", "dense_layers"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, but it is counted from 0")
        if self.representative not in REPRESENTATIVES:
            raise unknown("representative", self.representative, REPRESENTATIVES)
        least = self.sinks + self.window + self.key_block
        require(
            self.budget is None or self.budget >= least,
            f"budget is {self.budget}, but {self.sinks} sinks, a window of {self.window} and one block of "
            f"{self.key_block} keys are {least}",
        )

    def neutral(self) -> bool:
        return self.budget is None

    def touches(self, site: Site) -> bool:
        return super().touches(site) and (self.layers is not None or site.layer >= self.dense_layers)

    @property
    def blocks(self) -> int:
        """Blocks that the search finds."""
        return (self.budget - self.sinks - self.window) // self.key_block

    def search(self, text: CausalText) -> Found:
        """The blocks of keys for each block of queries, and what finding them cost."""
        rows = self._rows(text)
        q = functional.pad(text.q, (0, 0, 0, rows.numel() - text.queries)).unflatten(2, rows.shape)
        there = rows < text.length
        # What is searched ends where the last query's window begins; nothing in a query's future scores.
        stop = rows.amax(dim=1).clamp(max=text.length - 1) - self.window + 1
        return search_blocks(
            q, text.k, stop, keep=self.blocks, key_block=self.key_block, start=self.sinks,
            places=rows.masked_fill(~there, -1), representative=self.representative, shared=self.shared,
        )  # fmt: skip

    def seen(self, text, site):
        at, sees = self._gathered(self._rows(text), self.search(text).blocks)
        n = text.length
        # What a row does not see goes to a column of its own.
        at = torch.where(sees, at[..., None, :], n).clamp(max=n)
        seen = torch.zeros(*at.shape[:-1], n + 1, dtype=torch.bool, device=at.device).scatter_(-1, at, True)
        seen = seen.flatten(2, 3)[:, :, : text.queries, :n]
        return seen.repeat_interleave(site.q_heads // seen.shape[1], dim=1)

    def mix(self, text, site, run):
        if text.queries == 1 and text.past > 0:
            return self._step(text, run.memory(self, site), run)
        at, sees = self._gathered(self._rows(text), self.search(text).blocks)
        return attend_gathered(text.q, text.k, text.v, at, sees, scale=text.scale)

    def _step(self, text: CausalText, memory: dict[str, Any], run: Run) -> Float[Tensor, "b h 1 e"]:
        """One query with what was found some steps ago, or now where it is time."""
        own, row = text.samples, torch.tensor([[text.past]], device=text.q.device)
        last = int(memory["at"][own][0]) if "at" in memory else -1
        if last < 0 or text.past - last >= self.refresh:
            blocks = self.search(text).blocks
            if "at" not in memory:
                batch = run.batch or len(blocks)
                memory["at"] = torch.full((batch,), -1, device=row.device)
                memory["blocks"] = torch.full((batch, *blocks.shape[1:]), -1, device=row.device)
            memory["blocks"][own], memory["at"][own], last = blocks, text.past, text.past
        at, sees = self._gathered(row, memory["blocks"][own], searched=last)
        return attend_gathered(text.q, text.k, text.v, at, sees, scale=text.scale)

    def _rows(self, text: CausalText) -> Int[Tensor, "t r"]:
        """The queries' places, block by block."""
        size = min(self.query_block, text.queries)
        begins = torch.arange(text.past, text.length, size, device=text.q.device)
        return begins[:, None] + torch.arange(size, device=begins.device)

    def _gathered(
        self, rows: Int[Tensor, "t r"], blocks: Int[Tensor, "b c t s"], searched: int | None = None
    ) -> tuple[Int[Tensor, "b c t k"], Bool[Tensor, "b c t r k"]]:
        """Where sinks, window and found keys are, side by side, and which of them a row sees: no key twice.

        `searched` is the place whose window these rows go on with; otherwise each row has its own.
        """
        (b, c, t, _), device = blocks.shape, rows.device
        row = rows[..., None]
        lowest = (row if searched is None else torch.full_like(row, searched)) - self.window
        sinks = torch.arange(self.sinks, device=device).expand(t, -1)
        begins = rows[:, :1] if searched is None else torch.full_like(rows[:, :1], searched)
        span = torch.arange(int(rows[0, -1] - begins[0, 0]) + self.window, device=device)
        window = begins - self.window + 1 + span
        near = window[:, None]
        near = torch.cat([sinks[:, None] <= row, (near > lowest) & (near <= row) & (near >= self.sinks)], -1)
        inside = torch.arange(self.key_block, device=device)
        found = (self.sinks + blocks[..., None] * self.key_block + inside).flatten(-2)
        found = found.masked_fill((blocks < 0).repeat_interleave(self.key_block, dim=-1), -1)
        far = (found[..., None, :] >= self.sinks) & (found[..., None, :] <= lowest)
        at = torch.cat([torch.cat([sinks, window], dim=-1).expand(b, c, -1, -1), found], dim=-1)
        return at, torch.cat([near.expand(b, c, -1, -1, -1), far], dim=-1)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        small = dict(budget=10, sinks=2, window=3, query_block=1, dense_layers=1)
        return [
            small,
            small | dict(representative="first", shared=True),
            small | dict(key_block=1, layers=[0, -1]),
        ]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return dict(budget=None)
