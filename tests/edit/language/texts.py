"""Sites and texts with random numbers, for tests of edits that choose keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from regardant.edit.language.causal_text import CausalText
from regardant.host.run import Run
from regardant.host.site import Site

Q_HEADS, KV_HEADS, WIDTH = 4, 2, 8


def site(layer: int = 5) -> Site:
    return Site("here", "main", layer, False, Q_HEADS, KV_HEADS, WIDTH, True, nn.Identity())


def text(length: int, *, seed: int = 0, batch: int = 2) -> CausalText:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, heads, length, WIDTH, generator=generator, dtype=torch.float64)
        for heads in (Q_HEADS, KV_HEADS, KV_HEADS)
    )
    return CausalText(q, k, v, 0, WIDTH**-0.5, slice(0, batch), slice(0, length))


def pieces(whole: CausalText, ends: Sequence[int]) -> list[CausalText]:
    """The same text, read piece by piece behind a cache."""
    found, begin = [], 0
    for end in ends:
        found.append(
            CausalText(
                whole.q[:, :, begin:end], whole.k[:, :, :end], whole.v[:, :, :end], begin, whole.scale,
                whole.samples, slice(0, end - begin),
            )
        )  # fmt: skip
        begin = end
    return found


def read(edit, whole: CausalText, ends: Sequence[int] | None = None):
    """What an edit makes of a text, in one pass or in several."""
    run, outs = Run(), []
    for piece in pieces(whole, ends or [whole.length]):
        run.begin(past=piece.past, length=piece.length, batch=len(whole.q))
        outs.append(edit.mix(piece, site(), run))
    return torch.cat(outs, dim=2)
