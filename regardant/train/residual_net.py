"""A small residual convolution network around any gate: the same network, only the gate differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.record import Record


class GatedResidualNet(nn.Module):
    """A small residual convolution network on images [b, channels, h, w] → logits [b, classes].

    Every stage halves the map and doubles the width. `gate(channels)` makes the module behind the last
    normalisation of each residual branch, where squeeze-and-excitation and its kin sit; `nn.Identity`
    fits as well.
    """

    def __init__(
        self, gate: Callable[[int], nn.Module], *, channels: int = 1, classes: int = 10,
        widths: Sequence[int] = (32, 64, 128, 256),
    ):  # fmt: skip
        super().__init__()
        self.stem = _convolution(channels, widths[0], stride=1)
        wide = [widths[0], *widths]
        self.stages = nn.ModuleList(
            _Residual(before, after, gate(after), stride=1 if index == 0 else 2)
            for index, (before, after) in enumerate(pairwise(wide))
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(
        self, x: Float[Tensor, "b c h w"], *, record: Record | None = None
    ) -> Float[Tensor, "b classes"]:
        x = self.stem(x).relu()
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean(dim=(-2, -1)))


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, gate: nn.Module, *, stride: int):
        super().__init__()
        self.first = _convolution(before, after, stride=stride)
        self.second = _convolution(after, after, stride=1)
        self.gate = gate
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.skip(x) + self.gate(self.second(self.first(x).relu()))).relu()


def _convolution(before: int, after: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after)
    )
