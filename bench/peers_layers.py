"""The peers that are layers of public packages, each set against the system of ours that does the same.

Where the mathematics is the same, ours gets the peer's weights. Every peer is set up as its package
does it by default, but for what would change the mathematics (rotary positions, norms).
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

import regardant
from bench.contest import Contest
from regardant.compare.workload import map_size

DIM, HEADS = 256, 4


class First(nn.Module):
    """The first of what a layer returns: the output, without the loss beside it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def tokens(length: int) -> Tensor:
    return torch.randn(1, length, DIM, generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def give(ours: nn.Module, **weights: Tensor) -> None:
    """Set our projections: `q`, `k`, `v`, `out`."""
    for name, weight in weights.items():
        getattr(ours, f"to_{name}").weight.copy_(weight)


def softmax_against_x_transformers(length: int, *, causal: bool = True) -> Contest:
    from x_transformers.x_transformers import Attention

    theirs = Attention(DIM, dim_head=DIM // HEADS, heads=HEADS, causal=causal, flash=True)
    ours = regardant.create("softmax", dim=DIM, heads=HEADS, causal=causal)
    give(ours, q=theirs.to_q.weight, k=theirs.to_k.weight, v=theirs.to_v.weight, out=theirs.to_out.weight)
    return Contest.of_layers(ours, theirs, tokens(length), exact=ours.reference)


def gated_attention_against_x_transformers(length: int) -> Contest:
    """Both gate each head's values by the token; theirs with SDPA under the gate."""
    from x_transformers.x_transformers import Attention

    theirs = Attention(
        DIM, dim_head=DIM // HEADS, heads=HEADS, causal=True, flash=True, gate_value_heads=True
    )
    ours = regardant.create("gated-attention", dim=DIM, heads=HEADS, causal=True)
    return Contest.of_layers(ours, theirs, tokens(length), same=False)


def sliding_window_against_local_attention(length: int, *, window: int = 256, causal: bool = True) -> Contest:
    """Their window of w looks back at w tokens besides the query's own: ours is w + 1.

    Where w does not divide the length, and later tokens are seen, theirs attends to its own filling too.
    """
    from local_attention.transformer import LocalMHA

    theirs = LocalMHA(
        dim=DIM,
        window_size=window,
        dim_head=DIM // HEADS,
        heads=HEADS,
        causal=causal,
        use_rotary_pos_emb=False,
    )
    ours = regardant.create("sliding-window", dim=DIM, heads=HEADS, causal=causal, window=window + 1)
    q, k, v = theirs.to_qkv.weight.chunk(3)
    give(ours, q=q, k=k, v=v, out=theirs.to_out.weight)
    return Contest.of_layers(ours, theirs, tokens(length), exact=ours.reference)


def routing_against_routing_transformer(
    length: int, *, causal: bool = True, membership: str = "balanced"
) -> Contest:
    """Every head routes, to as many clusters of as many members on both sides.

    The peer's membership is balanced; queries and keys are shared, its default, when causal.
    """
    from routing_transformer.routing_transformer import SelfAttention

    # Theirs wants a window that divides the length: a power of two next to its square root.
    window = 1 << length.bit_length() // 2
    theirs = First(
        SelfAttention(
            DIM, depth=1, max_seq_len=length, heads=HEADS, local_attn_heads=0, window_size=window,
            causal=causal, shared_qk=causal,
        )
    )  # fmt: skip
    # The first call lays out the centroids.
    theirs(tokens(length))
    ours = regardant.create(
        "routing-transformer", dim=DIM, heads=HEADS, causal=causal, membership=membership, local_heads=0,
        clusters=length // window, window=window,
    )  # fmt: skip
    return Contest.of_layers(ours.eval(), theirs.eval(), tokens(length), same=False)


def axial_against_axial_attention(length: int) -> Contest:
    from axial_attention import AxialAttention

    theirs = AxialAttention(DIM, num_dimensions=2, heads=HEADS, dim_index=-1, sum_axial_out=True)
    ours = regardant.create("axial-transformer", dim=DIM, heads=HEADS, combine="sum")
    for peer in theirs.axial_attentions:
        # A permutation that moves the width next to the channels attends along the rows.
        rows = peer.permutation[-2] == 2
        layer, k, v = peer.fn, *peer.fn.to_kv.weight.chunk(2)
        give(
            ours.along[ours.axes.index(1 if rows else 0)],
            q=layer.to_q.weight,
            k=k,
            v=v,
            out=layer.to_out.weight,
        )
        nn.init.zeros_(layer.to_out.bias)
    height, width = map_size(length)
    x = tokens(length).unflatten(1, (height, width))
    return Contest.of_layers(ours, theirs, x, exact=ours.reference if isqrt(length) ** 2 == length else None)


def linear_against_linear_attention_transformer(
    length: int, *, system: str, causal: bool, blindspot: int = 1
) -> Contest:
    """Linear attention of another kind on the same shapes. With `blindspot` their causal form skips what
    is less than so many tokens back, which is quicker, and not what was asked for."""
    from linear_attention_transformer.linear_attention_transformer import SelfAttention

    theirs = SelfAttention(DIM, HEADS, causal=causal, blindspot_size=blindspot)
    ours = regardant.create(system, dim=DIM, heads=HEADS, causal=causal)
    return Contest.of_layers(ours, theirs, tokens(length), same=False)
