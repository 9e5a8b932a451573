"""Gates on maps with channels last: what is made for [b, c, h, w], among the parts of backbones."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.grid_position import on_channels_first


class ChannelsLast(nn.Module):
    """x [b, h, w, c] times the gate's weights."""

    def __init__(self, gate: nn.Module):
        super().__init__()
        self.gate = gate

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return on_channels_first(self.gate, x)

    def reference(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return on_channels_first(getattr(self.gate, "reference", self.gate), x)


def has_channels_last(model: nn.Module, name: str) -> bool:
    """Whether the part of this name, or one that it is in, says `channels_last` of the maps inside it."""
    parts = name.split(".")
    around = (model.get_submodule(".".join(parts[:count])) for count in range(len(parts) + 1))
    return any(getattr(each, "channels_last", False) for each in around)
