"""The neural long-term memory of Titans as a layer of its own, LMM (Behrouz et al., "Titans: Learning to
Memorize at Test Time", 2025, arXiv:2501.00663).

An MLP a head is trained while the sequence is read, to say v_t when it is shown k_t, and says what it
remembers to q_t:

    S_t = η_t S_{t-1} - θ_t ∇ ‖M_{W}(k_t) - v_t‖²     W_t = (1 - α_t) W_{t-1} + S_t     y_t = M_{W_t}(q_t)

momentum S carries surprise on to the tokens behind a surprising one, α_t forgets, and θ_t, η_t, α_t are
read off x_t. The tokens of a chunk take their gradients at the weights with which it began (`chunk=1`: at
those just before them), but each reads its own W_t, so that a query sees just what stands before and at it.

There is no official code. What is ours where the paper is silent: chunks of 16, convolutions of 4 tokens,
θ at most `rate`, no residual and no norm inside the memory. How the writes of a chunk are worked at once,
without a set of weights a token, is the subject of `regardant.core.surprise`.
"""

from __future__ import annotations

from regardant.core.mixer import check_heads
from regardant.core.neural_memory import NeuralMemory as Memory
from regardant.core.neural_memory import NeuralMemoryState
from regardant.core.streaming import Streaming
from regardant.core.supports import Supports


class NeuralMemory(Streaming):
    """A memory of `heads` MLPs, each `depth` layers deep and `expansion` times as wide inside as a head.

    `momentum=False` and `forgetting=False` are the paper's ablations: plain gradient steps without both.
    """

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, grouped=False,
        linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, head_dim: int | None = None, depth: int = 2,
        expansion: int = 2, chunk: int = 16, kernel: int = 4, rate: float = 0.1, clip: float | None = 1.0,
        momentum: bool = True, forgetting: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.check_causal(causal)
        check_heads(dim, heads, None, head_dim)
        self.dim, self.heads, self.causal = dim, heads, causal
        self.memory = Memory(
            dim, heads, head_dim=dim // heads if head_dim is None else head_dim, depth=depth,
            expansion=expansion, chunk=chunk, kernel=kernel, rate=rate, clip=clip, momentum=momentum,
            forgetting=forgetting,
        )  # fmt: skip

    def start(self, batch, *, context=None, padding=None) -> NeuralMemoryState:
        self.check_start(context, padding)
        return self.memory.start(batch)

    def run(self, x, state, *, padding=None, plainly=False):
        return self.memory.run(x, state, real=padding, plainly=plainly)

    def fits(self, state, batch):
        return isinstance(state, NeuralMemoryState) and self.memory.fits(state, batch)
