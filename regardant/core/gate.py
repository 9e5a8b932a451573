"""Gates: weights computed from a feature map and multiplied onto it. [b, c, h, w] → [b, c, h, w]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.supports import Supports


class Gate(nn.Module):
    """A gate on feature maps; a system says its `weights`.

    They are computed from a source, which is the map itself unless another one is given, and applied to the
    map, along the axes in which they are not 1.
    """

    supports: Supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False, time=1.0
    )
    channels: int

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b #c #h #w"]:
        """What x is multiplied with."""
        raise TypeError(f"{type(self).__name__} must define weights")

    def forward(
        self, x: Float[Tensor, "b c h w"], *, source: Float[Tensor, "b c h w"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        self.check_map(x)
        return x * self.weights(self.source_of(x, source))

    def reference(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The same mathematics done plainly."""
        raise TypeError(f"{type(self).__name__} must define reference")

    def source_of(
        self, x: Float[Tensor, "b c h w"], source: Float[Tensor, "b c h w"] | None
    ) -> Float[Tensor, "b c h w"]:
        """What the weights are computed from."""
        if source is None:
            return x
        self.check_map(source)
        require(
            source.shape == x.shape,
            f"source has shape {tuple(source.shape)}, but it is {tuple(x.shape)} like the map it gates",
        )
        return source

    def check_map(self, x: Tensor) -> None:
        require(x.ndim == 4, f"x has shape {tuple(x.shape)}, but it is [batch, channels, height, width]")
        require(
            x.shape[1] == self.channels,
            f"x has {x.shape[1]} channels, but this gate was made for {self.channels}",
        )
        weight = next(self.parameters(), None)
        if weight is not None and not torch.is_autocast_enabled(x.device.type):
            require(x.dtype == weight.dtype, f"x is {x.dtype}, but this gate's weights are {weight.dtype}")
