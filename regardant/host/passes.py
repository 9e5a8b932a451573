"""Watching the passes of a model of transformers: what is read, where it goes on, what is padding."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from regardant.host.run import Run


class Passes:
    """Tells a run, before every pass of the model, where that pass stands."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        self.run, self._caches = run, WeakSet()
        self._names = list(inspect.signature(type(model).forward).parameters)[1:]
        self._handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for cache in self._caches:
            cache.__dict__.pop("reorder_cache", None)
        self._handles, self._caches = [], WeakSet()

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(self._names, args)), **kwargs}
        decoding = (
            given.get("decoder_input_ids") is not None or given.get("decoder_inputs_embeds") is not None
        )
        prefix = "decoder_" if decoding else ""
        ids, embedded = given.get(prefix + "input_ids"), given.get(prefix + "inputs_embeds")
        shape = next((x.shape[:2] for x in (ids, embedded) if isinstance(x, Tensor)), None)
        cache = given.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if shape is None:  # pixels, sounds: a pass of its own, without a past
            self.run.begin(past=0, length=0, batch=_batch(given))
            return
        real = given.get(prefix + "attention_mask")
        length = past + shape[1]
        tokens = isinstance(real, Tensor) and real.ndim == 2
        real = real.to(torch.bool)[:, :length] if tokens else None
        self.run.begin(past=past, length=length, batch=shape[0], real=real, ids=ids)
        if cache is not None and "reorder_cache" not in vars(cache):
            self._follow(cache)

    def _follow(self, cache: Any) -> None:
        """Hear of it when beam search reorders the cache."""
        original = cache.reorder_cache

        def reorder_cache(beam_idx: Tensor) -> None:
            original(beam_idx)
            self.run.reorder(beam_idx)

        cache.reorder_cache = reorder_cache
        self._caches.add(cache)


def _batch(given: dict[str, Any]) -> int | None:
    return next((x.shape[0] for x in given.values() if isinstance(x, Tensor) and x.ndim), None)
