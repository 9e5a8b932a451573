"""A call of causal self-attention as plain texts: padding aside, the first token at place 0.

What chooses keys by their place (the first, the last, blocks of them) wants places in the text, not in a
padded batch or a cache that is longer than what it holds. Samples whose padding is alike are taken together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.host.call import Call
from regardant.host.run import Run


@dataclass(frozen=True)
class CausalText:
    """Samples of one length: query row r stands at place `past + r` and sees the keys 0 … past + r."""

    q: Float[Tensor, "b h m d"]
    k: Float[Tensor, "b g n d"]
    v: Float[Tensor, "b g n e"]
    past: int
    scale: float
    samples: slice | Int[Tensor, "b"]
    """Which samples of the call these are."""
    rows: slice | Int[Tensor, "m"]
    """Which rows of the call the queries are."""

    @property
    def queries(self) -> int:
        return self.q.shape[2]

    @property
    def length(self) -> int:
        return self.k.shape[2]

    def places(self) -> Int[Tensor, "m"]:
        """The queries' places among the keys."""
        return torch.arange(self.past, self.past + self.queries, device=self.q.device)

    def logits(self) -> Float[Tensor, "b h m n"]:
        """Scores of all pairs, what comes later included."""
        k = self.k.repeat_interleave(self.q.shape[1] // self.k.shape[1], dim=1)
        return self.q @ k.mT * self.scale

    def earlier(self) -> Bool[Tensor, "m n"]:
        """What there is to be seen."""
        return torch.arange(self.length, device=self.q.device) <= self.places()[:, None]

    def last(self, rows: int) -> CausalText:
        """The same with the last queries alone."""
        skipped = max(self.queries - rows, 0)
        own = slice(skipped, None)
        rest = (
            self.rows[own]
            if isinstance(self.rows, Tensor)
            else slice(self.rows.start + skipped, self.rows.stop)
        )
        return CausalText(
            self.q[:, :, own], self.k, self.v, self.past + skipped, self.scale, self.samples, rest
        )


def texts_of(call: Call, run: Run, asker: object) -> Iterator[CausalText]:
    """The texts of a call, whose padding and unused cache are left out; `asker` is named in refusals."""
    refuse_unusual(call, run, asker)
    end, batch = call.past + call.queries, call.batch
    real = run.real
    if real is None or real.shape != (batch, end) or bool(real.all()):
        yield CausalText(
            call.q, call.k[:, :, :end], call.v[:, :, :end], call.past, call.scaling,
            slice(0, batch), slice(0, call.queries),
        )  # fmt: skip
        return
    kinds, which = real.unique(dim=0, return_inverse=True)
    for number, kind in enumerate(kinds):
        samples = (which == number).nonzero()[:, 0].to(call.q.device)
        keys = kind.nonzero()[:, 0].to(call.q.device)
        past = int(kind[: call.past].sum())
        rows = keys[past:] - call.past
        if len(rows):
            k, v = (x[samples].index_select(2, keys) for x in (call.k, call.v))
            yield CausalText(call.q[samples].index_select(2, rows), k, v, past, call.scaling, samples, rows)


def put_rows(target: Float[Tensor, "b h m e"], text: CausalText, part: Float[Tensor, "s h r e"]) -> None:
    """What was computed for a text, where it belongs in the call."""
    if isinstance(text.samples, slice):
        target[text.samples, :, text.rows] = part.to(target.dtype)
    else:
        target[text.samples[:, None], :, text.rows] = part.transpose(1, 2).to(target.dtype)


def refuse_unusual(call: Call, run: Run, asker: object) -> None:
    """Anything but softmax over the past is refused: to leave it out unasked would change the model."""
    name = type(asker).__name__
    for what, there in (
        ("a bias on its logits", call.bias is not None),
        ("a soft cap on its logits", call.cap is not None),
        ("a logit without a value in its softmax", call.sinks is not None),
        ("dropout", call.dropout > 0),
        ("a cache that has dropped its first keys", call.first_key > 0),
    ):
        require(not there, f"{call.site} has {what}, which {name} cannot keep; name other layers=")
    end = call.past + call.queries
    if call.mask is None:
        require(
            call.causal or call.queries == 1,
            f"{call.site} sees all keys in this pass, but {name} chooses among earlier ones",
        )
        return
    # Three rows tell a plain causal mask from windows, prefixes and several texts in one.
    rows = sorted({0, call.queries // 2, call.queries - 1})
    at = torch.arange(call.keys, device=call.q.device)
    expected = (at <= call.past + torch.tensor(rows, device=call.q.device)[:, None])[None, None]
    seen = call.visible(rows)
    if run.real is not None and run.real.shape == (call.batch, end):
        real = run.real.to(call.q.device)
        columns = torch.zeros(call.batch, call.keys, dtype=torch.bool, device=call.q.device)
        columns[:, :end] = real
        counts = real[:, call.past :][:, rows]
        expected = expected & columns[:, None, None]
        seen, expected = seen & counts[:, None, :, None], expected & counts[:, None, :, None]
    require(
        bool((seen == expected).all()),
        f"{call.site} sees other keys than all earlier real ones (a window, a prefix, several texts in one), "
        f"but {name} chooses among all of them; name other layers=",
    )
