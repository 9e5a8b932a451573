"""Our own models: the multi-head layers whose rule is a softmax are sites.

A site's call has what the layer hands to its rule. Queries that decode step by step go through the rule's own
state, not through here: while edits are at work, `step` refuses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.rule import SoftmaxRule
from regardant.host.call import Call
from regardant.host.host import Attend
from regardant.host.run import Run
from regardant.host.site import Site


class NativeHost:
    """A model with layers of ours."""

    def __init__(self, model: nn.Module):
        self.model = model
        found = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, MultiHead)
            and isinstance(module.rule, SoftmaxRule)
            and type(module).attend is MultiHead.attend
        ]
        require(
            len(found) > 0,
            f"{type(model).__name__} has no attention that edits could act on: no model of transformers, "
            "diffusers or timm, and no layer of ours that is softmax over queries and keys (MultiHead)",
        )
        self.sites = tuple(_site(model, name, module, number) for number, (name, module) in enumerate(found))
        self._handles: list[Any] = []

    def attach(self, attend: Attend, run: Run) -> None:
        for site in self.sites:
            site.module.attend = _Routed(site, attend)
            site.module.step = _refuse_steps
        self._handles = [self.model.register_forward_pre_hook(_begins(run))]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for site in self.sites:
            vars(site.module).pop("attend", None)
            vars(site.module).pop("step", None)
        self._handles = []

    def output_projection(self, site: Site) -> nn.Module:
        return site.module.to_out


class _Routed:
    """Stands where a layer's `attend` stood."""

    def __init__(self, site: Site, attend: Attend):
        self.site, self._attend = site, attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, x, pattern, padding=None, record=None) -> Tensor:
        layer, rule = self.site.module, self.site.module.rule

        def fused(call: Call) -> tuple[Tensor, None]:
            if call.bias is not added:  # the rule knows only its own
                return call.mix(call.maps()), None
            return rule(call.q, call.k, call.v, pattern=pattern, scale=layer.scale), None

        require(
            rule.normaliser is None,
            f"{type(layer).__name__} normalises by {rule.normaliser}, but edits know only the softmax",
        )
        rows, columns = (torch.arange(each.shape[2], device=q.device) for each in (q, k))
        mask = None if pattern is None else pattern.block(rows, columns, batch=len(q), heads=q.shape[1])
        bias = rule.added(q, scale=layer.scale)
        added = None if bias is None else bias.block(rows, columns)
        if added is not None and added.ndim == 3:
            added = added[None]
        call = Call(
            self.site, q, k, v, mask, q.shape[-1] ** -0.5 if layer.scale is None else layer.scale,
            causal=False, fused=fused, bias=added,
        )  # fmt: skip
        return self._attend(call)[0]


def _site(model: nn.Module, name: str, layer: MultiHead, number: int) -> Site:
    block = model.get_submodule(name.rpartition(".")[0])
    return Site(
        name, "main", number, layer.context_dim is not None, layer.heads, layer.kv_heads, layer.head_dim,
        layer.causal, layer, None if block is model else block,
    )  # fmt: skip


def _refuse_steps(x_t: Tensor, state: Any) -> None:
    raise ValueError(
        "a layer under edit does not decode step by step: give it the whole text, or leave the edit"
    )


def _begins(run: Run):
    def hook(model: nn.Module, args: tuple[Any, ...]) -> None:
        first = next((each for each in args if isinstance(each, Tensor)), None)
        ids = first if first is not None and not first.is_floating_point() and first.ndim == 2 else None
        length = 0 if first is None or first.ndim < 2 else first.shape[1]
        run.begin(past=0, length=length, batch=None if first is None else len(first), ids=ids)

    return hook
