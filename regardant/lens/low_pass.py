"""Attention as a low-pass filter: how much a layer smooths its tokens, and how close texts end up.

The mean over tokens is the signal's constant part; what is left, H X with H = I - 1 1ᵀ / n, is its variation.

    variation(X) = ‖H X‖ / ‖X‖            how much tokens differ in a layer
    gain(A)      = σ_max(H A)             how much of a variation a map can let through
    likeness(E)  = mean cosine of pairs   how close embeddings of different texts are
    spread(E)    = mean distance to their mean

After the analysis of length collapse (arXiv 2410.24200). There the gain falls with the length, so that long
texts are smoothed more.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.errors import require


def variation(states: Float[Tensor, "b n c"], real: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b"]:
    """The share of the tokens' states that is not their mean; `real` is False on padding."""
    kept = torch.ones(states.shape[:2], dtype=torch.bool) if real is None else real
    weight = kept.to(states)[..., None]
    mean = (states * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    return ((states - mean) * weight).flatten(1).norm(dim=1) / (states * weight).flatten(1).norm(dim=1)


def gain(maps: Float[Tensor, "*lead m n"]) -> Float[Tensor, "*lead"]:
    """The largest singular value of each map behind the removal of the mean over its rows."""
    return torch.linalg.matrix_norm(maps - maps.mean(dim=-2, keepdim=True), ord=2)


def likeness(embeddings: Float[Tensor, "b c"]) -> float:
    """The mean cosine between embeddings of different texts."""
    count = _texts(embeddings)
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    return float(((unit @ unit.mT).sum() - count) / (count * (count - 1)))


def spread(embeddings: Float[Tensor, "b c"]) -> float:
    """The mean distance of embeddings to their mean."""
    _texts(embeddings)
    return float((embeddings - embeddings.mean(0)).norm(dim=-1).mean())


def _texts(embeddings: Tensor) -> int:
    require(
        embeddings.ndim == 2 and len(embeddings) >= 2,
        f"embeddings is {list(embeddings.shape)}, but at least two texts are compared: [texts, width]",
    )
    return len(embeddings)
