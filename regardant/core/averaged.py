"""The mean of modules of one shape, parameter by parameter: merging copies of one ancestor."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from regardant.core.errors import require

Module = TypeVar("Module", bound=nn.Module)


def averaged(modules: Sequence[Module]) -> Module:
    """A copy of the first module with the mean of all their parameters; buffers are the first one's."""
    require(len(modules) >= 1, "modules is empty, but a mean is of at least one")
    new = deepcopy(modules[0])
    each = [dict(module.named_parameters()) for module in modules]
    shapes = [{name: value.shape for name, value in parameters.items()} for parameters in each]
    require(
        all(other == shapes[0] for other in shapes),
        "modules differ in their parameters: copies of one do not",
    )
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            parameter.copy_(torch.stack([parameters[name] for parameters in each]).mean(0))
    return new
