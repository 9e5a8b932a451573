"""Networks: modules with inputs of their own kind, such as heads, memories, poolers and whole models.

A mixer is known by its shape; a network is not. So it brings examples of its configuration and its
inputs along, and the contract suite tries it on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regardant.core.errors import require


@dataclass(frozen=True)
class Example:
    """One configuration of a network, and what to call it with: tensors, batch first.

    Floating inputs are drawn in float64 (the suite casts them to the precision that it looks at).
    """

    config: Mapping[str, Any]
    inputs: tuple[Tensor, ...]
    keywords: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors = self.tensors()
        require(bool(tensors), "an example has no inputs, but a network is called with at least one tensor")
        for name, value in tensors.items():
            require(
                isinstance(value, Tensor) and value.ndim >= 1,
                f"{name} of an example is {_spell(value)}, but it is a tensor, batch first",
            )
            require(
                not value.is_floating_point() or value.dtype is torch.float64,
                f"{name} of an example is {value.dtype}, but floating inputs are drawn in float64",
            )
        sizes = {name: value.shape[0] for name, value in tensors.items()}
        require(len(set(sizes.values())) == 1, f"the batch sizes of an example differ: {sizes}")

    def tensors(self) -> dict[str, Tensor]:
        """Every input by name: `input 0`, `input 1`, …, then the keywords."""
        return {f"input {at}": value for at, value in enumerate(self.inputs)} | dict(self.keywords)

    @property
    def batch(self) -> int:
        return next(iter(self.tensors().values())).shape[0]


class Network(nn.Module):
    """A module that is held to the suite of networks.

    `forward` gives a tensor, or a tuple, mapping or dataclass of tensors, every one batch first;
    `reference` has the same signature and gives the same by the paper's equations, plainly. What is
    not per sample (losses, counts) goes into a `Record`.
    """

    exempt: ClassVar[Mapping[str, str]] = {}
    """Contract property → why this network cannot have it. Shown on the card."""

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        """Small configurations that cover the network's options, with inputs drawn from `generator`."""
        raise TypeError(f"{cls.__name__} must define examples")

    def reference(self, *inputs: Tensor, **keywords: Tensor) -> Any:
        """What `forward` gives, written for reading."""
        raise TypeError(f"{type(self).__name__} must define reference")


def _spell(value: object) -> str:
    return "a number" if isinstance(value, Tensor) else f"a {type(value).__name__}"
