"""Networks with named variants and released weights: what classifiers and restorers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from regardant.backbone.kit.official import Rule, translate
from regardant.backbone.kit.reparameterized import fuse
from regardant.core.errors import require, unknown
from regardant.core.network import Network

FIRST_DIFFERENCES = 5


class NamedNetwork(Network):
    """A network whose paper has models by name."""

    channels_last: ClassVar = True
    """What it is made of sees maps with channels last."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The paper's models: name → the arguments of the constructor."""
    official: ClassVar[Sequence[Rule]] = ()
    """From the released weights' names to ours, for `load_official`."""

    @classmethod
    def variant(cls, name: str) -> dict[str, Any]:
        """The arguments of the constructor for one of the paper's models."""
        if name not in cls.variants:
            raise unknown(f"variant of {cls.__name__}", name, cls.variants)
        return dict(cls.variants[name])

    def fuse(self) -> Self:
        """Convolutions with the batch norms behind them, and their parallel branches, become one each.

        For inference, in place: the outputs stay, the number of parameters shrinks.
        """
        require(not self.training, "the network is in training mode, but only .eval() can be fused")
        fuse(self)
        return self

    def wanted(self, name: str) -> bool:
        """Whether this network has a use for an entry of a checkpoint of its own variant."""
        return True

    @torch.no_grad()
    def load_official(self, state: Mapping[str, Tensor]) -> Self:
        """Take over released weights; raises where they are of another variant."""
        require(
            len(self.official) > 0, f"{type(self).__name__} knows no names of released weights to load by"
        )
        own, given = self.state_dict(), translate(state, self.official)
        given = {name: value for name, value in given.items() if self.wanted(name)}
        differences = []
        for name in [*own, *(name for name in given if name not in own)]:
            if name not in given:
                if not name.endswith("num_batches_tracked"):
                    differences.append(f"{name} is missing there")
            elif name not in own:
                differences.append(f"{name} is unknown here")
            elif _squeezed(own[name]) != _squeezed(given[name]):
                shapes = tuple(given[name].shape), tuple(own[name].shape)
                differences.append(f"{name} is {shapes[0]} there and {shapes[1]} here")
        first = "; ".join(differences[:FIRST_DIFFERENCES])
        require(
            not differences,
            f"the checkpoint is of another variant, {len(differences)} of its keys or shapes differ: {first}",
        )
        for name, value in given.items():
            own[name].copy_(value.reshape(own[name].shape))
        return self


def _squeezed(value: Tensor) -> tuple[int, ...]:
    """A shape without axes of length one: a 1×1 convolution has the shape of a linear layer."""
    return tuple(side for side in value.shape if side != 1)
