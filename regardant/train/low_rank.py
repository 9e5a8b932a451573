"""Low-rank adaptation (LoRA): linear layers of a frozen model plus a product of two thin matrices.

y = W x + (α / r) B A x            A [r, in] drawn, B [out, r] zero at the start
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.product import is_linear


class LowRank(nn.Module):
    """Thin matrices beside all linear layers of a model whose names end so (`("q_proj", "v_proj")`)."""

    def __init__(
        self, model: nn.Module, layers: Collection[str], *, rank: int = 4, alpha: float | None = None,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        require(rank >= 1, f"rank is {rank}, but it is at least 1")
        found = {
            name: module
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in layers and is_linear(module)
        }
        require(len(found) > 0, f"layers is {list(layers)}, but no linear layer of the model is named so")
        self.factor = (rank if alpha is None else alpha) / rank
        self._layers = found
        generator = torch.Generator().manual_seed(seed)
        self.into, self.out = nn.ParameterList(), nn.ParameterList()
        for module in found.values():
            weight = module.weight
            drawn = torch.randn(rank, weight.shape[1], generator=generator) * weight.shape[1] ** -0.5
            self.into.append(nn.Parameter(drawn.to(weight)))
            self.out.append(nn.Parameter(weight.new_zeros(weight.shape[0], rank)))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The model with the products added, for as long as this lasts."""
        handles = [
            layer.register_forward_hook(_added(into, out, self.factor))
            for layer, into, out in zip(self._layers.values(), self.into, self.out)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The products in the weights, for as long as this lasts; the weights then as they were, exactly."""
        kept = [layer.weight.detach().clone() for layer in self._layers.values()]
        with torch.no_grad():
            for layer, into, out in zip(self._layers.values(), self.into, self.out):
                layer.weight += self.factor * out @ into
        try:
            yield
        finally:
            with torch.no_grad():
                for layer, weight in zip(self._layers.values(), kept):
                    layer.weight.copy_(weight)


def _added(into: Tensor, out: Tensor, factor: float):
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + factor * (args[0] @ into.T) @ out.T

    return hook
