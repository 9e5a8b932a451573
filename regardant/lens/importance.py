"""How much a model needs each head: by taking it out, and by the gradient at its gate.

    removal   I_h = L(without h) - L                              a pass for every head
    gradient  I_h = mean over samples of |Σ_m ⟨∂L_s/∂z_h, z_h⟩|    one pass forward and back for all

The second is the derivative of the loss by a gate on the head's output z, taken sample by sample before the
absolute value (Michel et al., "Are Sixteen Heads Really Better than One?", 2019): what it says is true of
small changes, while removal is a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.edit.apply import apply
from regardant.edit.mask_heads import MaskHeads
from regardant.host.host import host_of
from regardant.host.run import Run
from regardant.host.seam import Seam
from regardant.host.site import Site
from regardant.lens.head_map import HeadMap

Loss = Callable[[nn.Module], Float[Tensor, "b"]]
"""Runs the model on some samples and gives a loss for each."""
Progress = Callable[[int, int], None]


class _Gates:
    """A gate of 1 on every head's output, a sample each, that gradients arrive at."""

    def __init__(self) -> None:
        self.at: dict[str, Tensor] = {}

    def stages(self, site: Site) -> frozenset[str]:
        return frozenset() if site.cross else frozenset(["heads"])

    def heads(self, heads: Float[Tensor, "b h m e"], site: Site, run: Run) -> Float[Tensor, "b h m e"]:
        require(site.name not in self.at, f"the loss ran {site} twice, but the gradient is of a single pass")
        gate = torch.ones(heads.shape[:2], dtype=heads.dtype, device=heads.device, requires_grad=True)
        self.at[site.name] = gate
        return heads * gate[:, :, None, None]


def importance_by_gradient(model: nn.Module, loss: Loss) -> HeadMap:
    """How steeply each head's gate moves the loss, over the samples of one pass."""
    gates, seam = _Gates(), Seam.of(model)
    seam.enter([gates])
    try:
        with torch.enable_grad():
            losses = loss(model)
            require(losses.ndim == 1, f"the loss is {list(losses.shape)}, but it is one number a sample [b]")
            require(losses.requires_grad, "the loss has no gradient: run the model without torch.no_grad()")
            # Samples do not meet, so that the gradient of the sum is each sample's own.
            slopes = torch.autograd.grad(losses.sum(), list(gates.at.values()))
    finally:
        seam.leave([gates])
    sites = {site.name: site for site in seam.host.sites}
    return _filled(
        {sites[name]: slope.abs().mean(0) for name, slope in zip(gates.at, slopes)}, "importance by gradient"
    )


def importance_by_removal(
    model: nn.Module, loss: Loss, *, heads: Iterable[tuple[int, int]] | None = None,
    progress: Progress | None = None,
) -> HeadMap:  # fmt: skip
    """How much the mean loss rises without each head; of all heads, or of those that are given."""
    sites = [site for site in host_of(model).sites if not site.cross]
    stacks = {site.stack for site in sites}
    require(len(stacks) == 1, f"the model has the stacks {', '.join(sorted(stacks))}, but heads are of one")
    asked = [(s.layer, h) for s in sites for h in range(s.q_heads)] if heads is None else list(heads)
    found = {site: torch.full((site.q_heads,), torch.nan, dtype=torch.float64) for site in sites}
    by_layer = {site.layer: site for site in sites}
    with torch.no_grad():
        base = float(loss(model).double().mean())
        for done, (layer, head) in enumerate(asked, start=1):
            with apply(model, MaskHeads(chosen=[(layer, head)])):
                found[by_layer[layer]][head] = float(loss(model).double().mean()) - base
            if progress is not None:
                progress(done, len(asked))
    return _filled(found, "importance by removal")


def next_token_loss(ids: Tensor) -> Loss:
    """The mean negative log-likelihood of every text, given itself: a loss for language models."""

    def loss(model: nn.Module) -> Float[Tensor, "b"]:
        logits = model(ids).logits[:, :-1]
        logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        each = nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        return each.view(ids.shape[0], -1).mean(1)

    return loss


def _filled(found: dict[Site, Tensor], title: str) -> HeadMap:
    values = torch.full(
        (max(site.layer for site in found) + 1, max(site.q_heads for site in found)), torch.nan,
        dtype=torch.float64,
    )  # fmt: skip
    for site, own in found.items():
        values[site.layer, : site.q_heads] = own.double().cpu()
    return HeadMap(values, title)
