"""Released weights under our names: rules, applied in their order to every key of a state dict."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """What matches `pattern` in a key is replaced by `by` (a text, or a function of the match).

    `by=None` leaves the whole entry out. `change` is what happens to the tensor of a key that matched.
    `parts` are texts of which each replaces the match in a copy of the key: the tensor is cut along its
    first axis into as many.
    """

    pattern: str
    by: str | Callable[[re.Match], str] | None = None
    change: Callable[[Tensor], Tensor] | None = None
    parts: Sequence[str] = ()


def translate(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """The same tensors by our names."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        entries = {key: value}
        for rule in rules:
            entries = dict(pair for entry in entries.items() for pair in _applied(rule, *entry))
        found |= entries
    return found


def _applied(rule: Rule, key: str, value: Tensor) -> list[tuple[str, Tensor]]:
    if not re.search(rule.pattern, key):
        return [(key, value)]
    value = value if rule.change is None else rule.change(value)
    if rule.parts:
        pieces = value.chunk(len(rule.parts))
        return [(re.sub(rule.pattern, part, key), piece) for part, piece in zip(rule.parts, pieces)]
    return [] if rule.by is None else [(re.sub(rule.pattern, rule.by, key), value)]


def joined(
    state: Mapping[str, Tensor], within: str, *, parts: Sequence[str], whole: str
) -> dict[str, Tensor]:
    """The same entries, but those whose keys match `within` and differ in one of `parts` alone are one, end
    to end along their first axis: queries and keys from two layers for a layer that has both."""
    found, first = dict(state), f".{parts[0]}."
    for key in state:
        several = [key.replace(first, f".{part}.") for part in parts]
        if re.search(within, key) and first in key and all(name in state for name in several):
            found[key.replace(first, f".{whole}.")] = torch.cat([found.pop(name) for name in several])
    return found


def by_key_minus_query(table: Float[Tensor, "offsets heads"]) -> Float[Tensor, "heads down across"]:
    """A released table of biases in square windows, whose offsets are query minus key and along one axis."""
    side = round(len(table) ** 0.5)
    return table.unflatten(0, (side, side)).flip(0, 1).permute(2, 0, 1)
