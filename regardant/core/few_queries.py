"""What few queries hear of many positions, whose keys and values need not be made for that.

    softmax(q (x W_kᵀ + b_k)ᵀ · s) (x W_vᵀ + b_v)   =   softmax((q W_k) xᵀ · s + q b_k · s) x W_vᵀ + b_v

as weights sum to one. (The keys' bias adds the same to all logits of a query; it is kept so that it has its
gradient of zero.) With m queries of each of `heads` heads every position costs 2 · m · heads · c
multiply-adds, instead of 2 · c² for its key and value: for class tokens, which ask alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.product import replaceable

Affine = tuple[Tensor, Tensor | None]
"""Weight and bias of a linear layer."""
FEWER = 4
"""Queries are few where they are so many times fewer than channels of a head, and than positions."""


def hear(
    q: Float[Tensor, "b h m d"], x: Float[Tensor, "b n c"], *layers: nn.Module, scale: float | None = None
) -> Float[Tensor, "b m he"]:
    """What the heads hear, side by side. `layers` make keys and values: one for each, or one for both; they
    are not asked where the shorter way is open and nobody listens to them."""
    heads = q.shape[1]
    if FEWER * q.shape[2] <= min(q.shape[3], x.shape[1]) and replaceable(x, *layers):
        return hear_unmade(q, x, *_halves([(layer.weight, layer.bias) for layer in layers]), scale=scale)
    made = [layer(x) for layer in layers]
    k, v = made if len(made) == 2 else made[0].chunk(2, dim=-1)
    k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _halves(parameters: list[Affine]) -> Iterable[Affine]:
    """Weight and bias of the keys, and of the values."""
    if len(parameters) == 2:
        return parameters
    ((weight, bias),) = parameters
    return zip(weight.chunk(2), (None, None) if bias is None else bias.chunk(2))


def hear_unmade(
    q: Float[Tensor, "b h m d"], x: Float[Tensor, "b n c"], keys: Affine, values: Affine,
    *, scale: float | None = None,
) -> Float[Tensor, "b m he"]:  # fmt: skip
    """The same without keys and values; given are weights and biases that would make them."""
    (to_key, key_bias), (to_value, value_bias) = keys, values
    heads, count = q.shape[1:3]
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = (q @ to_key.unflatten(0, (heads, -1))).flatten(1, 2) @ x.mT
    if key_bias is not None:
        logits = logits + (q @ key_bias.unflatten(0, (heads, -1))[..., None]).flatten(1, 2)
    seen = (logits.softmax(dim=-1) @ x).unflatten(1, (heads, count))
    heard = (seen @ to_value.unflatten(0, (heads, -1)).mT).transpose(1, 2).flatten(2)
    return heard if value_bias is None else heard + value_bias
