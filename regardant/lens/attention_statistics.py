"""What a row of attention is like: reductions for a `Tape`, each row on its own.

entropy            -Σ p ln p, in nats
sink_share(s)      Σ p over the first s tokens of the text
distance_profile   Σ p by distance, in bins 0, 1, 2-3, 4-7, 8-15, …
mean_distance      Σ p · distance
attended           the place of the largest weight
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.lens.tape import View


def entropy(weights: Float[Tensor, "b h m n"], view: View) -> Float[Tensor, "b h m"]:
    """How wide a row looks: 0 on a single key, ln n where it is even over n."""
    # Not torch's own: its gradient at 0 is infinite.
    return -(weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum(-1)


def sink_share(tokens: int = 1) -> Callable[[Tensor, View], Tensor]:
    """What a row gives to the first `tokens` of its text, behind padding on the left."""
    require(tokens >= 1, f"tokens is {tokens}, but a sink is at least 1 token")

    def reduce(weights: Float[Tensor, "b h m n"], view: View) -> Float[Tensor, "b h m"]:
        place = torch.arange(weights.shape[-1], device=weights.device)
        sink = (place >= view.first[:, None]) & (place < view.first[:, None] + tokens)
        return (weights * sink[:, None, None]).sum(-1)

    return reduce


def distance_bins(distance: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
    """The bin of a distance, whichever way: 0, 1, 2-3, 4-7, …"""
    return torch.where(distance == 0, 0, distance.abs().clamp(min=1).log2().floor().long() + 1)


def distance_profile(bins: int = 14) -> Callable[[Tensor, View], Tensor]:
    """What a row gives to each distance [b, h, m, bins]; the last bin takes all that is farther."""
    require(bins >= 2, f"bins is {bins}, but a profile has at least 2")

    def reduce(weights: Float[Tensor, "b h m n"], view: View) -> Float[Tensor, "b h m s"]:
        index = distance_bins(view.distance(weights.shape[-1])).clamp(max=bins - 1)
        found = weights.new_zeros(*weights.shape[:-1], bins)
        return found.scatter_add(-1, index.expand(weights.shape), weights)

    return reduce


def mean_distance(weights: Float[Tensor, "b h m n"], view: View) -> Float[Tensor, "b h m"]:
    """How far a row looks on the average, in tokens."""
    return (weights * view.distance(weights.shape[-1]).abs()).sum(-1)


def attended(weights: Float[Tensor, "b h m n"], view: View) -> Int[Tensor, "b h m"]:
    """The key that a row looks at most."""
    return weights.argmax(-1)


def share_on(
    keys: Bool[Tensor, "b n"] | Callable[[View], Bool[Tensor, "b m n"]],
) -> Callable[[Tensor, View], Tensor]:
    """What a row gives to chosen keys: the same for all rows [b, n], or asked row by row."""

    def reduce(weights: Float[Tensor, "b h m n"], view: View) -> Float[Tensor, "b h m"]:
        if isinstance(keys, Tensor):
            behind = weights.shape[-1] - keys.shape[-1]
            require(
                behind >= 0,
                f"keys is {list(keys.shape)}, but this attention has {weights.shape[-1]} keys",
            )
            chosen = torch.nn.functional.pad(keys.to(weights.device), (0, behind))[:, None]
        else:
            chosen = keys(view)
        return (weights * chosen[:, None]).sum(-1)

    return reduce


def share_at_distance(distance: int) -> Callable[[Tensor, View], Tensor]:
    """What a row gives to the key `distance` behind it: 1 finds previous-token heads."""

    def keys(view: View) -> Bool[Tensor, "1 m n"]:
        return (view.distance(view.visible.shape[-1]) == distance)[None]

    return share_on(keys)


def induction_keys(ids: Int[Tensor, "b n"]) -> Callable[[View], Bool[Tensor, "b m n"]]:
    """The keys behind earlier occurrences of a row's own token: where an induction head looks."""

    def keys(view: View) -> Bool[Tensor, "b m n"]:
        own = ids.to(view.places.device)
        after = torch.nn.functional.pad(own[:, :-1], (1, 0), value=-1)
        same = own[:, view.places][:, :, None] == after[:, None, :]
        return same & (view.distance(own.shape[1]) > 0)

    return keys
