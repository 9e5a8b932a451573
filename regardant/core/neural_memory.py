"""A neural memory as a module: projections, short convolutions and gates around `regardant.core.surprise`.

    k_t, q_t = unit(SiLU(conv(x W)))       v_t = SiLU(conv(x W_V))
    θ_t = rate·sigmoid(·)    α_t = sigmoid(·)    η_t = sigmoid(·)      one a head, from x_t
    y_t = (norm(M_{W_t}(q_t)) ⊙ SiLU(x_t W_G)) W_O

after Behrouz et al., Titans, 2025, arXiv:2501.00663, sections 3 and 4.4: keys and queries of length one, a
causal depthwise convolution behind each projection, and norm and gate before the last one. Each head has a
memory of its own, and each sample its own weights, which begin as the learned ones. Ours: x is normed where
it comes in, since a loud value would throw a nonlinear memory off for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.delta_rule import delta_rule
from regardant.core.errors import require
from regardant.core.product import Linear
from regardant.core.state import State
from regardant.core.surprise import Gates, MemoryState, memorise, memorise_plainly, recall

TINY = 1e-6
"""Under the root of a norm, so that nothing is divided by 0."""


@dataclass
class NeuralMemoryState(State):
    """The memory, and the inputs of the convolutions that the next tokens still reach back to."""

    inner: MemoryState
    tail: Float[Tensor, "b r w"]


class NeuralMemory(nn.Module):
    """x [b, n, dim] → what an MLP of `depth` layers, trained on x up to each token, says to it [b, n, dim].

    `chunk` tokens take their gradients at the same weights; 1 is the recurrence as it is written. `rate`
    is the largest θ, and a gradient longer than `clip` is shortened to it: where a token repeats itself, a
    chunk of large steps overshoots, and with neither bound the memory would diverge.
    """

    def __init__(
        self, dim: int, heads: int, *, head_dim: int, depth: int = 2, expansion: int = 2, chunk: int = 16,
        kernel: int = 4, rate: float = 0.1, clip: float | None = 1.0, momentum: bool = True,
        forgetting: bool = True,
    ):  # fmt: skip
        super().__init__()
        require(depth >= 1, f"depth is {depth}, but a memory has at least 1 layer")
        require(expansion >= 1, f"expansion is {expansion}, but a hidden layer is at least as wide as a head")
        require(chunk >= 1, f"chunk is {chunk}, but a chunk holds at least one token")
        require(kernel >= 1, f"kernel is {kernel}, but a convolution sees at least its own token")
        require(rate > 0, f"rate is {rate}, but a memory that learns takes steps of a positive size")
        require(clip is None or clip > 0, f"clip is {clip}, but a gradient is shortened to a positive length")
        self.heads, self.head_dim, self.chunk, self.rate, self.clip = heads, head_dim, chunk, rate, clip
        self.momentum, self.forgetting = momentum, forgetting
        width, hidden = heads * head_dim, [expansion * head_dim] * (depth - 1)
        self.to_qkv = Linear(dim, 3 * width, bias=False)
        self.taps = nn.Parameter(torch.empty(kernel, 3 * width).uniform_(-(kernel**-0.5), kernel**-0.5))
        self.to_gates = Linear(dim, 3 * heads)
        sizes = [head_dim, *hidden, head_dim]
        self.first_weights = nn.ParameterList(
            torch.randn(heads, rows, columns) * rows**-0.5 for rows, columns in pairwise(sizes)
        )
        self.norm = nn.Parameter(torch.ones(width))
        self.to_gate = Linear(dim, width, bias=False)
        self.to_out = Linear(width, dim, bias=False)
        with torch.no_grad():  # a memory of some hundred tokens, and a momentum of two
            self.to_gates.bias.copy_(torch.tensor([0.0, -5.0, 0.0]).repeat_interleave(heads))

    def start(self, batch: int) -> NeuralMemoryState:
        """The learned first weights, and nothing read."""
        exact = torch.promote_types(self.taps.dtype, torch.float32)
        first = [weight.to(exact) for weight in self.first_weights]
        inner = MemoryState.of(first, batch, momentum=self.momentum)
        return NeuralMemoryState(0, inner, self.taps.new_zeros(batch, *self._tail_shape()))

    def run(
        self, x: Float[Tensor, "b n c"], state: NeuralMemoryState, *, real: Bool[Tensor, "b n"] | None = None,
        plainly: bool = False,
    ) -> tuple[Float[Tensor, "b n c"], NeuralMemoryState]:  # fmt: skip
        """Write the tokens of a segment and read at each; padding writes nothing."""
        x = _entering(x, real)
        projected, tail = self._convolved(self.to_qkv(x), state.tail, self.taps, plainly)
        q, k, v = (self._split(part) for part in projected.chunk(3, dim=-1))
        heads, inner = self._written(_unit(q), _unit(k), v, self._gates(x), state.inner, real, plainly)
        return self._merge(heads, x), NeuralMemoryState(inner.length, inner, tail)

    def read(
        self, x: Float[Tensor, "b n c"], weights: tuple[Tensor, ...], tail: Float[Tensor, "b r w"],
        *, real: Bool[Tensor, "b n"] | None = None, plainly: bool = False,
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b r w"]]:  # fmt: skip
        """What weights that stay as they are say to the tokens of a segment, `tail` being its queries'."""
        x = _entering(x, real)
        width = tail.shape[-1]
        projected = F.linear(x, self.to_qkv.weight[:width])
        q, tail = self._convolved(projected, tail, self.taps[:, :width], plainly)
        return self._merge(recall(weights, _unit(self._split(q))), x), tail

    def _written(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: MemoryState, real: Tensor | None,
        plainly: bool,
    ) -> tuple[Float[Tensor, "b h n d"], MemoryState]:  # fmt: skip
        if not plainly and len(self.first_weights) == self.chunk == 1 and self.clip is None:
            # One matrix, each gradient at the weights just before: that has a form with longer chunks.
            logs = (gates.log_keep, gates.log_momentum)
            heads, layer = delta_rule(q, k, v, 2 * gates.rate, *logs, state=state.layers[0], real=real)
            return heads, MemoryState(state.length + q.shape[2], (layer,), (layer[:, :, 0],))
        run = memorise_plainly if plainly else memorise
        return run(q, k, v, gates, state, chunk=self.chunk, clip=self.clip, real=real)

    def start_of_queries(self, batch: int) -> Float[Tensor, "b r w"]:
        """The tail of a stream that is only read for."""
        rows, width = self._tail_shape()
        return self.taps.new_zeros(batch, rows, width // 3)

    def fits(self, state: NeuralMemoryState, batch: int) -> bool:
        """Whether a state holds `batch` memories of this shape."""
        begun = [(batch, *weight.shape) for weight in self.first_weights]
        layers = [(*shape[:2], 1 + self.momentum, *shape[2:]) for shape in begun]
        return (
            state.tail.shape == (batch, *self._tail_shape())
            and [each.shape for each in state.inner.begun] == begun
            and [each.shape for each in state.inner.layers] == layers
        )

    def _tail_shape(self) -> tuple[int, int]:
        return len(self.taps) - 1, self.taps.shape[1]

    def _split(self, x: Tensor) -> Float[Tensor, "b h n d"]:
        x = F.silu(x.to(torch.promote_types(x.dtype, torch.float32)))
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _gates(self, x: Float[Tensor, "b n c"]) -> Gates:
        gates = self.to_gates(x).to(torch.promote_types(x.dtype, torch.float32))
        rate, forget, stay = gates.mT.chunk(3, dim=1)
        keep = F.logsigmoid(-forget) if self.forgetting else torch.zeros_like(forget)
        return Gates(self.rate * rate.sigmoid(), keep, F.logsigmoid(stay) if self.momentum else None)

    def _merge(self, heads: Float[Tensor, "b h n d"], x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        normed = heads * (heads.square().mean(-1, keepdim=True) + TINY).rsqrt()
        normed = normed.transpose(1, 2).flatten(2).to(x.dtype) * self.norm
        return self.to_out(normed * F.silu(self.to_gate(x)))

    @staticmethod
    def _convolved(
        x: Float[Tensor, "b n w"], tail: Float[Tensor, "b r w"], taps: Float[Tensor, "k w"], plainly: bool
    ) -> tuple[Float[Tensor, "b n w"], Float[Tensor, "b r w"]]:
        """Σ_j taps_j x_{t-k+1+j} for each channel, and what the next segment needs of x."""
        n, reach = x.shape[1], len(taps) - 1
        x = torch.cat([tail, x], dim=1)
        if plainly:
            rows = [sum(x[:, t + j] * taps[j] for j in range(reach + 1)) for t in range(n)]
            return torch.stack(rows, dim=1), x[:, n:]
        out = x[:, reach:] * taps[reach]
        for j in range(reach):
            out = torch.addcmul(out, x[:, j : j + n], taps[j])
        return out, x[:, n:]


def _entering(x: Float[Tensor, "b n c"], real: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b n c"]:
    """Tokens of root mean square one, padding of none: values that are loud make the memory diverge."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    x = (exact * (exact.square().mean(-1, keepdim=True) + TINY).rsqrt()).to(x.dtype)
    return x if real is None else torch.where(real[..., None], x, 0)


def _unit(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Of length one, or of none."""
    return x * (x.square().sum(-1, keepdim=True) + TINY).rsqrt()
