"""What a call gave, whatever its make, as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from regardant.contract.equality import off, where
from regardant.contract.report import Broken


def parts(value: Any, name: str = "the output") -> dict[str, Tensor]:
    """The tensors in a tensor, tuple, list, mapping or dataclass of such; anything else holds none."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        inner = [(f"{name}[{key!r}]", each) for key, each in value.items()]
    elif is_dataclass(value) and not isinstance(value, type):
        inner = [(f"{name}.{each.name}", getattr(value, each.name)) for each in fields(value)]
    elif isinstance(value, tuple | list):
        inner = [(f"{name}[{at}]", each) for at, each in enumerate(value)]
    else:
        return {}
    return {path: tensor for part, each in inner for path, tensor in parts(each, part).items()}


def apart(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference of two sets of parts, as `off` measures it, and where it is.

    Parts that are not floating differ wholly or not at all; so do sets of different make.
    """
    if found.keys() != right.keys():
        return float("inf"), f"{', '.join(found) or 'nothing'} instead of {', '.join(right) or 'nothing'}"
    worst, said = 0.0, ""
    for name, part in found.items():
        wanted = right[name]
        if part.shape != wanted.shape:
            return float("inf"), f"{name} is {tuple(part.shape)} instead of {tuple(wanted.shape)}"
        if not part.is_floating_point():
            error = 0.0 if torch.equal(part, wanted) else float("inf")
        else:
            error = off(part, wanted)
        if error > worst:
            spot = where(part.double(), wanted.double())
            worst, said = error, f"{name} has {spot}"
    return worst, said


def hold_equal(found: Mapping[str, Tensor], right: Mapping[str, Tensor], most: float, deed: str) -> float:
    """The largest difference, or `Broken` where it is more than `most`; `deed` says what was compared."""
    error, place = apart(found, right)
    if not error <= most:
        raise Broken(f"{deed} by {error:.2g}: {place}")
    return error
