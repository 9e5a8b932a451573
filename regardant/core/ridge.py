"""Ridge regression on given features, for several strengths at once.

    min_v ‖Φ v − y‖² + λ n ‖v‖²      v = Φᵀ (Φ Φᵀ + λ n I)⁻¹ y = (Φᵀ Φ + λ n I)⁻¹ Φᵀ y

The smaller of the two matrices is taken apart once, whatever the number of strengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require


def ridge(
    features: Float[Tensor, "n p"], targets: Float[Tensor, " n"], strengths: Sequence[float]
) -> Float[Tensor, "strengths p"]:
    """The weights for each strength λ, which counts per sample."""
    require(
        features.ndim == 2 and targets.shape == features.shape[:1] and len(targets) > 0,
        f"features is {tuple(features.shape)} and targets {tuple(targets.shape)}, "
        "but they are [samples, features] and [samples], at least one",
    )
    require(bool(strengths) and min(strengths) > 0, f"strengths is {list(strengths)}, but each is positive")
    samples, width = features.shape
    few = width <= samples
    gram = features.T @ features if few else features @ features.T
    values, vectors = torch.linalg.eigh(gram)
    seen = vectors.T @ (features.T @ targets if few else targets)
    rows = [vectors @ (seen / (values.clamp(min=0) + strength * samples)) for strength in strengths]
    return torch.stack([row if few else features.T @ row for row in rows])


def best_ridge(
    features: Float[Tensor, "n p"], targets: Float[Tensor, " n"],
    held_out: tuple[Float[Tensor, "m p"], Float[Tensor, " m"]], strengths: Sequence[float],
) -> Float[Tensor, " p"]:  # fmt: skip
    """The weights of the strength that is best on what was held out."""
    weights = ridge(features, targets, strengths)
    seen, right = held_out
    errors = (seen @ weights.T - right[:, None]).square().mean(dim=0)
    return weights[int(errors.argmin())]
