"""Influence: by how much a loss would rise, to first order, if a weight of attention were dropped.

MoA's profile (Fu et al., 2024, arXiv 2406.14909). For a row of weights A with gradients G = ∂L/∂A, dropping
entry j and dividing the rest by what is left changes the loss by about

    E_ij = A_ij / (1 - A_ij) · (Σ_m G_im A_im - G_ij)

whose size |E_ij|, entry by entry as in the official profile, is summed over tiles of `block` queries by
`block` keys and averaged over texts: with their signs, the entries of a tile would cancel. The forward stays
fused: only the gradient of each layer's heads is taken, and A and G = ∂L/∂heads · vᵀ are computed again from
q, k and v, layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from regardant.core.errors import require
from regardant.host.call import Call
from regardant.host.seam import Seam
from regardant.host.site import Site

IGNORED = -100


class AttentionInfluence:
    """Sizes of the influences in all layers that see the past, over tiles of `block` by `block`."""

    def __init__(self, *, block: int = 64) -> None:
        require(block >= 1, f"block is {block}, but a tile holds at least 1 query")
        self.block = block
        self._calls: list[tuple[Call, Tensor]] = []

    def stages(self, site: Site) -> frozenset[str]:
        return frozenset({"read"} if site.causal and not site.cross else ())

    def read(self, call, heads, weights, site, run) -> None:
        self._calls.append((call, heads))

    def measure(
        self, model: nn.Module, texts: Iterable[tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]]
    ) -> Float[Tensor, "layers heads t t"]:
        """The mean over texts of one length; each comes with labels, -100 where a token has no loss.

        Labels are the tokens that should come next, of the same shape. What the unedited model would have
        written itself makes good labels, on tokens that need what stands far back.
        """
        seam, total, count = Seam.of(model), None, 0
        seam.enter([self])
        try:
            for ids, labels in texts:
                found = self._of(model, ids, labels)
                require(
                    total is None or total.shape == found.shape, "texts differ in length, but a mean is taken"
                )
                total, count = found if total is None else total + found, count + 1
        finally:
            seam.leave([self])
            self._calls.clear()
        require(count > 0, "texts is empty, but at least one is needed")
        return total / count

    def _of(self, model: nn.Module, ids: Tensor, labels: Tensor) -> Float[Tensor, "layers heads t t"]:
        self._calls.clear()
        with torch.enable_grad():
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
            scores = model(inputs_embeds=embedded, use_cache=False).logits
            loss = functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
            grads = torch.autograd.grad(loss, [heads for _, heads in self._calls])
        with torch.no_grad():
            tiles = [self._tiles(call, grad) for (call, _), grad in zip(self._calls, grads)]
        self._calls.clear()
        return torch.stack(tiles)

    def _tiles(self, call: Call, grad: Float[Tensor, "b h n e"]) -> Float[Tensor, "h t t"]:
        """Head by head, so that one map of each kind is held."""
        found = []
        for head in range(call.q.shape[1]):
            weights = call.maps(heads=[head])[:, 0]
            effect = influence(weights, grad[:, head] @ call.v[:, head // call.site.group].mT)
            spare = -effect.shape[-1] % self.block
            effect = functional.pad(effect.abs().sum(0), (0, spare, 0, spare))
            found.append(effect.unflatten(1, (-1, self.block)).unflatten(0, (-1, self.block)).sum((1, 3)))
        return torch.stack(found)


def influence(weights: Float[Tensor, "*b m n"], gradient: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
    """E for every entry. An entry that is its row's only one cannot be renormalised: it counts as -G A."""
    mean = (gradient * weights).sum(-1, keepdim=True)
    rest = 1 - weights
    only = rest <= torch.finfo(weights.dtype).eps
    return torch.where(only, -gradient * weights, weights / rest.masked_fill(only, 1) * (mean - gradient))


def by_key_head(
    tiles: Float[Tensor, "layers heads t t"], *, kv_heads: int
) -> Float[Tensor, "layers kv_heads t t"]:
    """Of the heads that share a key head the largest: what a plan goes by."""
    return tiles.unflatten(1, (kv_heads, -1)).amax(dim=2)
