"""Known answers: cases in which what a measurement or a procedure must find is known in advance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regardant.core.errors import require


@dataclass(frozen=True)
class KnownAnswer:
    """What was found in one case, and what had to be found: by construction, closed form or autograd.

    A lens, a training method and a parallel layer each give some from their classmethod
    `known_answers(generator)`, an iterator; whatever is drawn is drawn from that generator.
    """

    what: str
    """The case, in words: it names the answer in the verdict."""
    found: Tensor | float
    expected: Tensor | float
    tolerance: float = 1e-9
    """The largest absolute difference that passes."""

    def __post_init__(self) -> None:
        require(bool(self.what.strip()), "what is empty, but it says in words which case this is")
        require(
            math.isfinite(self.tolerance) and self.tolerance >= 0,
            f"tolerance of {self.what!r} is {self.tolerance}, but it is a finite number, 0 or more",
        )

    def error(self) -> float:
        """The largest absolute difference; infinite where the shapes differ or nothing finite was found."""
        found, expected = _tensor(self.found), _tensor(self.expected)
        if found.shape != expected.shape:
            return math.inf
        if found.numel() == 0:
            return 0.0
        apart = torch.where(found == expected, 0.0, (found - expected).abs())
        return math.inf if apart.isnan().any() else float(apart.max())


def _tensor(value: Tensor | float) -> Tensor:
    return value.detach().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
