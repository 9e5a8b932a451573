"""Mixers that read a sequence in segments of any length and carry a state from one to the next.

    state = layer.start(batch)
    for segment in x.split(4096, dim=1):
        y, state = layer.extend(segment, state)
        state = state.detach()          # where gradients shall not reach further back

`forward` is one segment from the start, `prefill` the same with its state, `step` a segment of one token:
a system writes `run` once and has all four. A state that was made by another configuration is refused.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.mixer import Mixer, check_input
from regardant.core.state import State


class Streaming(Mixer):
    """A causal mixer. A system defines `start`, `run` and `fits`."""

    def run(
        self, x: Float[Tensor, "b n c"], state: State, *, padding: Bool[Tensor, "b n"] | None = None,
        plainly: bool = False,
    ) -> tuple[Float[Tensor, "b n c"], State]:  # fmt: skip
        """n tokens behind a state; `plainly` for reading, otherwise for speed."""
        raise TypeError(f"{type(self).__name__} must define run")

    def fits(self, state: State, batch: int) -> bool:
        """Whether a state, `batch` samples of it, was made by a layer like this one."""
        raise TypeError(f"{type(self).__name__} must define fits")

    def start(self, batch, *, context=None, padding=None):
        raise TypeError(f"{type(self).__name__} must define start")

    def extend(
        self, x: Float[Tensor, "b n c"], state: State, padding: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Float[Tensor, "b n c"], State]:
        """A further segment behind `state`, which stays as it was."""
        self.check_inputs(x, None, padding)
        self.check_state(state, x.shape[0])
        return self.run(x, state, padding=padding)

    def forward(self, x, context=None, padding=None, *, record=None):
        self.check_inputs(x, context, padding)
        return self.run(x, self.start(x.shape[0]), padding=padding)[0]

    def reference(self, x, context=None, padding=None):
        self.check_inputs(x, context, padding)
        return self.run(x, self.start(x.shape[0]), padding=padding, plainly=True)[0]

    def prefill(self, x: Float[Tensor, "b n c"]) -> tuple[Float[Tensor, "b n c"], State]:
        """`forward` over a prompt, and the state from which `step` and `extend` go on."""
        return self.extend(x, self.start(x.shape[0]))

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, next(self.parameters()))
        self.check_state(state, x_t.shape[0])
        y, state = self.run(x_t[:, None], state)
        return y[:, 0], state

    def check_inputs(self, x: Tensor, context: Tensor | None, padding: Tensor | None) -> None:
        check_input("x", x, "batch, length, width", self.dim, next(self.parameters()))
        name = type(self).__name__
        require(context is None, f"context is given, but {name} reads one sequence, and has no use for it")
        require(x.shape[1] > 0, "there is no token to read: the length is 0")
        if padding is not None:
            require(self.supports.padding, f"padding is given, but {name} takes none")
            require(
                padding.dtype == torch.bool and padding.shape == x.shape[:2],
                f"padding is {padding.dtype} {list(padding.shape)}, but it is bool {list(x.shape[:2])}, "
                "True where real",
            )

    def check_state(self, state: State, batch: int) -> None:
        require(
            self.fits(state, batch),
            f"state is a {type(state).__name__} of another configuration or batch: "
            f"{type(self).__name__} goes on from what its own start({batch}) began",
        )

    def check_causal(self, causal: bool) -> None:
        require(causal, f"causal=False, but {type(self).__name__} reads from left to right: causal=True")

    def check_start(self, context: Tensor | None, padding: Tensor | None) -> None:
        name = type(self).__name__
        require(context is None, f"context is given, but {name} reads one sequence, and has no use for it")
        require(padding is None, "padding speaks of tokens, and start is given none")
