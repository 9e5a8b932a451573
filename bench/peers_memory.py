"""Peers that learn while they read, and random features: same weights, same mathematics.

The layers around differ from package to package, so the operations themselves are set side by side, each
with the projections of the peer.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contest import Contest
from regardant.core.pattern import Causal
from regardant.core.surprise import Gates, MemoryState, memorise
from regardant.sequence.performer import RandomFeatureRule

DIM, HEADS, WIDTH = 256, 4, 64
RATE, CHUNK = 0.5, 16


class Perceptron(nn.Module):
    """The memory's network, without biases: SiLU between products."""

    def __init__(self, width: int, *, depth: int = 2, expansion: int = 2):
        super().__init__()
        sizes = [width, *[expansion * width] * (depth - 1), width]
        self.weights = nn.ParameterList(
            torch.randn(rows, columns) * rows**-0.5 for rows, columns in pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer, weight in enumerate(self.weights):
            x = (F.silu(x) if layer else x) @ weight
        return x


def memory_against_titans_pytorch(length: int) -> Contest:
    """A neural memory with momentum and forgetting; gradients at the weights before each 16 tokens."""
    from titans_pytorch import NeuralMemory

    theirs = NeuralMemory(
        DIM, chunk_size=1, batch_size=CHUNK, dim_head=WIDTH, heads=HEADS, model=Perceptron(WIDTH),
        pre_rmsnorm=False, qk_rmsnorm=False, mem_model_norm_add_residual=False,
        default_step_transform_max_lr=RATE,
    )  # fmt: skip

    def ours(x: Tensor) -> Tensor:
        project = (theirs.to_queries, theirs.to_keys, theirs.to_values)
        q, k, v = (each(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in project)
        gates = Gates(
            torch.sigmoid(theirs.to_adaptive_step[0](x)).mT * (RATE / WIDTH),
            F.logsigmoid(-theirs.to_decay_factor[0](x)).mT,
            F.logsigmoid(theirs.to_momentum[0](x)).mT,
        )
        empty = MemoryState.of(list(theirs.memory_model_parameters), x.shape[0], momentum=True)
        heads, _ = memorise(q, k, v, gates, empty, chunk=CHUNK)
        return theirs.combine_heads(theirs.merge_heads(heads * theirs.retrieve_gate(x)))

    x = torch.randn(1, length, DIM, generator=torch.Generator().manual_seed(length))
    used = [weight for weight in theirs.parameters() if weight.requires_grad]
    return Contest(ours, lambda x: theirs(x)[0], (x,), (used, used))


def features_against_performer_pytorch(length: int, *, causal: bool) -> Contest:
    """Positive random features of the softmax kernel. Where the sum runs along the sequence, their keys are
    scaled by the largest of all, later ones included, and ours are not: the outputs differ then."""
    from performer_pytorch.performer_pytorch import FastAttention

    rule, pattern = RandomFeatureRule(WIDTH), Causal() if causal else None
    theirs = FastAttention(WIDTH, causal=causal, no_projection=False)
    theirs.projection_matrix.copy_(rule.directions)
    generator = torch.Generator().manual_seed(length)
    inputs = tuple(torch.randn(1, HEADS, length, WIDTH, generator=generator) for _ in range(3))
    return Contest(lambda q, k, v: rule(q, k, v, pattern=pattern), theirs, inputs, same=not causal)
