"""What a library must offer so that edits and lenses can act on its models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.host.call import Call
from regardant.host.run import Run
from regardant.host.site import Site

Attend = Callable[[Call], tuple[Float[Tensor, "b h m e"], Tensor | None]]
"""What takes an attention's place: the heads' outputs, and the weights where they were written out."""


class Host(Protocol):
    """A model and its sites. `attach` routes every site's calls through `attend` and tells `run` of every
    pass; `detach` leaves the model as it was found."""

    model: nn.Module
    sites: tuple[Site, ...]

    def attach(self, attend: Attend, run: Run) -> None: ...

    def detach(self) -> None: ...

    def output_projection(self, site: Site) -> nn.Module: ...


def host_of(model: nn.Module) -> Host:
    """The host that knows this model. Raises a sentence where none does."""
    require(isinstance(model, nn.Module), f"model is {type(model).__name__}, but a torch module is wanted")
    origins = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    if "transformers" in origins:
        from regardant.host.transformers import TransformersHost

        return TransformersHost(model)
    if "diffusers" in origins:
        from regardant.host.diffusers import DiffusersHost

        return DiffusersHost(model)
    if "timm" in origins:
        from regardant.host.timm import TimmHost

        return TimmHost(model)
    from regardant.host.native import NativeHost

    return NativeHost(model)
