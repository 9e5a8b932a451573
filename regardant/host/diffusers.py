"""Models of diffusers: UNets and diffusion transformers, whose attention processors call the fused function.

A pass is one denoising step: `run.step` counts them, and `run.timestep` is what the model was told.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from regardant.host.fused_calls import FusedCalls, tokens_of
from regardant.host.run import Run
from regardant.host.site import Site

STACKS = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}


class DiffusersHost(FusedCalls):
    """A model of diffusers."""

    advice = "set its processor to AttnProcessor2_0"
    wanted = "a UNet or a diffusion transformer of diffusers, whose attention has a processor"

    def __init__(self, model: nn.Module):
        super().__init__(model, _sites(model))

    def begins(self, run: Run):
        names = list(inspect.signature(type(self.model).forward).parameters)[1:]

        def hook(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = {**dict(zip(names, args)), **kwargs}
            first = next(each for each in given.values() if isinstance(each, Tensor))
            run.advance(batch=len(first), length=tokens_of(first), timestep=given.get("timestep"))

        return hook

    def output_projection(self, site: Site) -> nn.Module:
        return site.module.to_out[0]


def _sites(model: nn.Module) -> Iterator[Site]:
    counted: dict[str, int] = {}
    for name, module in model.named_modules():
        if not (hasattr(module, "processor") and hasattr(module, "to_q") and hasattr(module, "heads")):
            continue
        stack = STACKS.get(name.partition(".")[0], "main")
        cross = bool(getattr(module, "is_cross_attention", False))
        around = name.rpartition(".")[0]
        block = model.get_submodule(around) if around else None
        key = f"{stack} {cross}"
        layer = counted[key] = counted.get(key, -1) + 1
        dim = module.to_q.out_features // module.heads
        yield Site(name, stack, layer, cross, module.heads, module.heads, dim, False, module, block)
