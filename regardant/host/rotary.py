"""Queries and keys as they were before rotary positions were turned into them.

A host hands its attention what is already turned. Each attention module is given the cosines and sines,
though, and its file has the function that turns: with the sines' signs changed, it turns back.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from regardant.host.call import Call

GIVEN = "position_embeddings"
TURN = "apply_rotary_pos_emb"


class Rotary:
    """Remembers the cosines and sines that modules are called with, and turns calls back by them."""

    def __init__(self) -> None:
        self._given: dict[int, tuple[Tensor, Tensor]] = {}
        self._handles: list[Any] = []

    def watch(self, module: nn.Module) -> None:
        if turn_of(module) is not None:
            self._handles.append(module.register_forward_pre_hook(self._note, with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._given.clear()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get(GIVEN)
        if given is None:
            place = list(inspect.signature(type(module).forward).parameters).index(GIVEN) - 1
            given = args[place] if place < len(args) else None
        if given is None:
            self._given.pop(id(module), None)
        else:
            self._given[id(module)] = given

    def unturned(self, call: Call) -> tuple[Tensor, Tensor] | None:
        """The queries of this pass and the keys of the same tokens; None where nothing is known of them."""
        module = call.site.module
        turn, given = turn_of(module), self._given.get(id(module))
        if turn is None or given is None:
            return None
        cos, sin = given
        size = cos.square() + sin.square()
        first = call.past - call.first_key
        keys = call.k[:, :, first : first + call.queries]
        return turn(call.q, keys, cos / size, -sin / size)


def turn_of(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The function by which this attention turns its queries and keys, where it is the usual one."""
    forward = inspect.unwrap(type(module).forward)
    if GIVEN not in inspect.signature(forward).parameters or TURN not in forward.__code__.co_names:
        return None
    return vars(sys.modules[forward.__module__]).get(TURN)
