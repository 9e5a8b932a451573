"""Models whose attention modules call torch's scaled_dot_product_attention: the call itself is the seam.

While attached, each attention module's forward runs under a mode that hands its call of that function to whom
it may concern, with the arguments that the module made; all else of the module's forward is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from regardant.core.errors import require
from regardant.host.call import Call
from regardant.host.host import Attend
from regardant.host.run import Run
from regardant.host.site import Site


class FusedCalls:
    """A host of such modules. Subclasses say which these are, and tell the run of the model's passes."""

    advice = "choose an implementation that does"
    """What to do where a module's forward calls something else."""

    wanted = "modules that call it"
    """What is looked for, in the words of the sentence that refuses a model without it."""

    def __init__(self, model: nn.Module, sites: Iterable[Site]):
        self.model, self.sites = model, tuple(sites)
        require(len(self.sites) > 0, f"no attention is found in {type(model).__name__}; choose {self.wanted}")
        self._handles: list[Any] = []

    def attach(self, attend: Attend, run: Run) -> None:
        for site in self.sites:
            site.module.forward = _routed(site, attend, self.advice)
        self._handles = [self.model.register_forward_pre_hook(self.begins(run), with_kwargs=True)]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for site in self.sites:
            vars(site.module).pop("forward", None)
        self._handles = []

    def begins(self, run: Run) -> Callable[..., None]:
        """A hook before every pass of the model."""
        raise TypeError(f"{type(self).__name__} must define begins")

    def output_projection(self, site: Site) -> nn.Module:
        raise TypeError(f"{type(self).__name__} must define output_projection")


def _routed(site: Site, attend: Attend, advice: str) -> Callable[..., Any]:
    """The module's own forward, under the mode."""
    original = type(site.module).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Handing(site, attend) as handing:
            output = original(site.module, *args, **kwargs)
        require(
            handing.calls > 0,
            f"{type(site.module).__name__} at {site.name} does not call torch's fused attention; {advice}",
        )
        return output

    return forward


class _Handing(TorchFunctionMode):
    """Hands on calls of scaled_dot_product_attention; runs all other functions as they are."""

    def __init__(self, site: Site, attend: Attend):
        super().__init__()
        self.site, self.attend, self.calls = site, attend, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        self.calls += 1
        return self._hand(*args, **(kwargs or {}))

    def _hand(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        def fused(call: Call) -> tuple[Tensor, None]:
            out = scaled_dot_product_attention(
                call.q, call.k, call.v, attn_mask=call.mask, dropout_p=call.dropout,
                is_causal=call.causal and call.mask is None, scale=call.scaling, enable_gqa=enable_gqa,
            )  # fmt: skip
            return out, None

        scaling = query.shape[-1] ** -0.5 if scale is None else scale
        mask = None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.ndim)]
        call = Call(
            self.site, query, key, value, mask, scaling, causal=is_causal, fused=fused, dropout=dropout_p
        )
        return self.attend(call)[0]


def tokens_of(x: Tensor) -> int:
    """How many places a map [b, c, h, w] or a sequence [b, n, c] has."""
    return int(torch.tensor(x.shape[2:]).prod()) if x.ndim == 4 else x.shape[1]
