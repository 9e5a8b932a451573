"""Tokens that leave the stream between two blocks, and tokens that join it.

An edit's `keep` says which tokens go on behind a block; its `inject` gives states that stand before all
others from there on. Deeper blocks have fewer (or more) rows then, and caches of other lengths than the
first: what the model prepares for all of its blocks alike (mask, positions) is cut to each block's own
tokens. Behind the last block every token is back at its place; one that was dropped has the state in which
it left.

Each block remembers the places in the text of the keys in its cache: -1 for injected ones, which all later
tokens see.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.host.run import Run

ALIGNED = ("position_ids", "position_embeddings")
"""What a block is given for each of its rows."""
INJECTED = -1


class TokenFlow:
    """The tokens of one stack of blocks. `acting`: by a block's number, the edits that keep or inject."""

    def __init__(self, blocks: Sequence[nn.Module], acting: Mapping[int, Any], run: Run, count: Any):
        self.blocks, self.acting, self.run, self.count = blocks, acting, run, count
        self._rows: Tensor | None = None
        self._full: Tensor | None = None
        self._handles = []
        for number, block in enumerate(blocks):
            self._handles.append(block.register_forward_pre_hook(self._cut(number), with_kwargs=True))
            self._handles.append(block.register_forward_hook(self._pass_on(number)))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _cut(self, number: int):
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._before(number, args, kwargs)

        return hook

    def _pass_on(self, number: int):
        def hook(block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return self._after(number, output)

        return hook

    def _before(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Cut what the model prepared to the tokens that are here."""
        names = list(inspect.signature(type(self.blocks[number]).forward).parameters)[1:]
        kwargs = {**dict(zip(names, args)), **kwargs}
        stream = kwargs[names[0]]
        if number == 0:
            each = torch.arange(stream.shape[1], device=stream.device)
            self._rows, self._full = each.expand(len(stream), -1), None
        memory = self.run.memory(self)
        rows = self._rows
        places = torch.where(rows == INJECTED, INJECTED, rows + self.run.past)
        name = f"keys of block {number}"
        keys = torch.cat([memory[name], places], dim=1) if name in memory and self.run.past else places
        memory[name] = keys
        if number == 0:
            return None
        for name in ALIGNED:
            if kwargs.get(name) is not None:
                kwargs[name] = _aligned(kwargs[name], rows)
        if isinstance(kwargs.get("attention_mask"), Tensor):
            kwargs["attention_mask"] = self._mask(kwargs["attention_mask"], rows, keys)
        return (), kwargs

    def _mask(self, mask: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
        """The mask of these rows and keys; of a row that joined, only those that joined are seen."""
        require(
            mask.ndim == 4 and mask.shape[-1] == self.run.length,
            f"the mask is {list(mask.shape)} for {self.run.length} tokens, but tokens can be dropped only "
            "where every layer keeps all keys: use a dynamic cache and no sliding window",
        )
        visible = True if mask.dtype == torch.bool else 0.0
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        mask = mask.expand(len(rows), -1, -1, -1)
        if mask.shape[2] > 1:
            mask = mask.gather(2, _like(rows, mask, axis=2))
        mask = mask.gather(3, _like(keys, mask, axis=3))
        joined, joining = (keys == INJECTED)[:, None, None, :], (rows == INJECTED)[:, None, :, None]
        mask = mask.masked_fill(joined, visible)
        return mask.masked_fill(joining & ~joined, hidden)

    def _after(self, number: int, output: Any) -> Any:
        stream = output if isinstance(output, Tensor) else output[0]
        for actor, site, stage in self.acting.get(number, ()):
            stream = getattr(self, f"_{stage}")(actor, site, stream)
        if number == len(self.blocks) - 1:
            stream = self._whole(stream)
        return stream if isinstance(output, Tensor) else type(output)((stream, *output[1:]))

    def _keep(self, actor: Any, site: Any, stream: Float[Tensor, "b m c"]) -> Float[Tensor, "b k c"]:
        joined = int((self._rows[0] == INJECTED).sum())
        kept = actor.keep(stream[:, joined:], site, self.run)
        if kept is None:
            return stream
        self.count(actor, "keep")
        _check(kept, stream.shape[1] - joined)
        self._full = self._whole(stream)
        ahead = torch.arange(joined, device=kept.device).expand(len(kept), -1)
        kept = torch.cat([ahead, kept.sort(dim=1).values + joined], dim=1)
        self._rows = self._rows.gather(1, kept)
        return stream.gather(1, kept[..., None].expand(-1, -1, stream.shape[-1]))

    def _inject(self, actor: Any, site: Any, stream: Float[Tensor, "b m c"]) -> Float[Tensor, "b k c"]:
        states = actor.inject(stream, site, self.run)
        if states is None:
            return stream
        self.count(actor, "inject")
        require(
            states.ndim == 3 and states.shape[::2] == stream.shape[::2],
            f"{type(actor).__name__} injects {list(states.shape)} into a stream of {list(stream.shape)}: "
            "[batch, tokens, width] is wanted",
        )
        if self._full is None:
            self._full = stream
        self._rows = torch.cat([self._rows.new_full(states.shape[:2], INJECTED), self._rows], dim=1)
        return torch.cat([states, stream], dim=1)

    def _whole(self, stream: Float[Tensor, "b k c"]) -> Float[Tensor, "b m c"]:
        """All tokens of this pass: those that are here as they are now."""
        if self._full is None:
            return stream
        joined = int((self._rows[0] == INJECTED).sum())
        rows = self._rows[:, joined:, None].expand(-1, -1, stream.shape[-1])
        return self._full.scatter(1, rows, stream[:, joined:])


def _check(kept: Int[Tensor, "b k"], count: int) -> None:
    require(
        kept.ndim == 2 and kept.dtype == torch.long and kept.shape[1] > 0,
        f"keep gives {kept.dtype} {list(kept.shape)}, but the places that go on are int64 [b, k]",
    )
    inside = bool((kept >= 0).all()) and bool((kept < count).all())
    twice = bool((kept.sort(dim=1).values.diff(dim=1) == 0).any())
    require(inside and not twice, f"keep names places outside of 0 to {count - 1}, or one of them twice")


def _aligned(given: Any, rows: Int[Tensor, "b k"]) -> Any:
    """The rows' part of something with an entry a row; what joined takes the first one's."""
    if isinstance(given, tuple):
        return tuple(_aligned(each, rows) for each in given)
    rows = rows.clamp(min=0)
    given = given.expand(len(rows), *given.shape[1:])
    return given.gather(1, rows if given.ndim == 2 else rows[..., None].expand(-1, -1, given.shape[-1]))


def _like(places: Int[Tensor, "b k"], mask: Tensor, *, axis: int) -> Tensor:
    """Places as an index of the mask along an axis."""
    places = places.clamp(min=0)
    shape = list(mask.shape)
    shape[axis] = places.shape[1]
    return (places[:, None, :, None] if axis == 2 else places[:, None, None, :]).expand(shape)
