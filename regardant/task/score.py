"""Losses and metrics that several tasks share."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""The label of a position that is not scored."""


def label_loss(logits: Float[Tensor, "*b classes"], labels: Int[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, over the labels that count."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def summed_label_loss(
    logits: Float[Tensor, "*b classes"], labels: Int[Tensor, "*b"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The sum of the cross-entropies, and how many there are."""
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (labels != IGNORED).sum()


def hits(
    logits: Float[Tensor, "*b classes"], labels: Int[Tensor, "*b"], among: Bool[Tensor, "*b"] | None = None
) -> tuple[Int[Tensor, ""], Int[Tensor, ""]]:
    """How many labels that count (and lie `among`) have the highest logit, and how many there are."""
    counted = labels != IGNORED if among is None else (labels != IGNORED) & among
    return ((logits.argmax(dim=-1) == labels) & counted).sum(), counted.sum()


def certain(labels: Int[Tensor, "*b"], classes: int) -> Float[Tensor, "*b classes"]:
    """The logits of a model that is sure of the labels, and right (where none counts: of class 0)."""
    return 1e3 * F.one_hot(labels.clamp(min=0), classes).float()


def overlaps(
    logits: Float[Tensor, "*b classes"], labels: Int[Tensor, "*b"]
) -> tuple[Int[Tensor, "classes"], Int[Tensor, "classes"]]:
    """Intersection and union of what is said and what is true, class by class."""
    classes = torch.arange(logits.shape[-1], device=labels.device)
    said = logits.argmax(dim=-1)[..., None] == classes
    true = labels[..., None] == classes
    both, either = said & true, said | true
    return both.flatten(0, -2).sum(dim=0), either.flatten(0, -2).sum(dim=0)
