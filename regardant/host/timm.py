"""Models of timm: vision transformers whose attention calls the fused function.

The modules are known by what they are made of (one projection `qkv`, `num_heads`, `proj`), so that timm
itself is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from regardant.host.fused_calls import FusedCalls, tokens_of
from regardant.host.run import Run
from regardant.host.site import Site


class TimmHost(FusedCalls):
    """A model of timm."""

    advice = "set its fused_attn to True (timm.layers.set_fused_attn())"
    wanted = "a vision transformer of timm, whose attention has qkv, num_heads and proj"

    def __init__(self, model: nn.Module):
        super().__init__(model, _sites(model))

    def begins(self, run: Run):
        def hook(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
            run.begin(past=0, length=tokens_of(first), batch=len(first))

        return hook

    def output_projection(self, site: Site) -> nn.Module:
        return site.module.proj


def _sites(model: nn.Module) -> Iterator[Site]:
    layer = 0
    for name, module in model.named_modules():
        if not all(hasattr(module, each) for each in ("qkv", "num_heads", "proj")):
            continue
        block = model.get_submodule(name.rpartition(".")[0])
        heads = module.num_heads
        dim = module.qkv.out_features // 3 // heads
        yield Site(
            name, "main", layer, False, heads, heads, dim, False, module, None if block is model else block
        )
        layer += 1
