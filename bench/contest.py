"""A contest: one of our layers and a peer on the same input, outputs compared, timed by turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from time import perf_counter

import torch
from torch import Tensor, nn

from regardant.compare.clock import Timing, clock
from regardant.core.errors import require

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Contest:
    """Two functions of the same inputs, and what their gradients are taken to besides the inputs.

    `same` says that both have the same weights and do the same mathematics, so that their outputs must
    agree; otherwise only the shapes are the same. `exact`, where there is one, does it plainly. A peer
    without a backward on this device is timed forward only.
    """

    ours: Call
    theirs: Call
    inputs: tuple[Tensor, ...]
    weights: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())
    same: bool = True
    exact: Call | None = None
    backward: bool = True
    lead: float = 0.0
    """Seconds before each measurement that do not count: see `clock`."""
    their_inputs: tuple[Tensor, ...] | None = None
    """What theirs is given, where it wants the same numbers in another layout."""

    @classmethod
    def of_layers(cls, ours: nn.Module, theirs: nn.Module, *inputs: Tensor, **about) -> Contest:
        used = (list(ours.parameters()), list(theirs.parameters()))
        return cls(ours, theirs, inputs, used, **about)

    @property
    def given(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The inputs of ours and of theirs."""
        return self.inputs, self.inputs if self.their_inputs is None else self.their_inputs

    @torch.no_grad()
    def outputs(self) -> tuple[Tensor, Tensor]:
        """Of ours and of theirs, each in its own layout."""
        ours, theirs = self.given
        return self.ours(*ours), self.theirs(*theirs)

    def phases(self) -> tuple[str, ...]:
        return ("forward", "backward") if self.backward else ("forward",)

    @torch.no_grad()
    def differences(self, *, exact_up_to: int = 2048) -> dict[str, float]:
        """The largest differences of the outputs: ours from theirs, and each from the plain float32."""
        if not self.same:
            return {}
        ours, theirs = self.outputs()
        found = {"ours_from_theirs": _distance(ours, theirs)}
        if self.exact is not None and self.inputs[0].shape[-2] <= exact_up_to:
            plain = self.exact(*self.inputs)
            found |= {"ours": _distance(ours, plain), "theirs": _distance(theirs, plain)}
        return found

    def clock(self, phase: str, *, budget: float = 0.5, longest: float = 20.0) -> tuple[Timing, Timing]:
        """Ours and theirs: at least 20 repetitions; of slow ones, what fits in `longest` seconds or 5."""
        calls = dict(zip(("ours", "theirs"), self.calls(phase)))
        rough = sum(timing.best for _, timing in clock(calls, budget=0, least=1))
        least = min(20, max(5, int(longest / rough)))
        found = dict(clock(calls, budget=budget, least=least, warm=True, lead=self.lead))
        return found["ours"], found["theirs"]

    def rounds(
        self, phase: str, *, seconds: float = 4.0, least: int = 3, most: int = 50, turn: float = 0.02
    ) -> list[tuple[float, float]]:
        """Seconds of ours and of theirs, side by side in each round; who goes first alternates.

        A turn lasts `turn` seconds at least: the first of several short calls pays for what the other side
        left in the caches, and would be all that is seen.
        """
        calls = self.calls(phase)
        for call in calls:
            call()
        times = [max(1, ceil(turn / self._spent(call, 1))) for call in calls]
        found: list[tuple[float, float]] = []
        end = perf_counter() + seconds
        while len(found) < least or (len(found) < most and perf_counter() < end):
            spent = [0.0, 0.0]
            for which in (0, 1) if len(found) % 2 == 0 else (1, 0):
                spent[which] = self._spent(calls[which], times[which])
            found.append((spent[0], spent[1]))
        return found

    @staticmethod
    def _spent(call: Callable[[], object], times: int) -> float:
        """Seconds of one call, in the mean of so many."""
        begun = perf_counter()
        for _ in range(times):
            call()
        return (perf_counter() - begun) / times

    def calls(self, phase: str) -> list[Callable[[], object]]:
        """What is timed: ours and theirs."""
        sides = zip((self.ours, self.theirs), self.given, self.weights)
        return [self._call(run, given, own, phase) for run, given, own in sides]

    def _call(
        self, run: Call, given: Sequence[Tensor], weights: Sequence[Tensor], phase: str
    ) -> Callable[[], object]:
        if phase == "forward":

            def forward() -> Tensor:
                with torch.no_grad():
                    return run(*given)

            return forward
        inputs = [x.detach().requires_grad_() for x in given]
        with torch.no_grad():
            grad = torch.randn_like(run(*given))
        wanted = [*inputs, *weights]
        return lambda: torch.autograd.grad(run(*inputs), wanted, grad, allow_unused=True)


def _distance(left: Tensor, right: Tensor) -> float:
    require(left.shape == right.shape, f"outputs are {tuple(left.shape)} and {tuple(right.shape)}, not alike")
    return (left - right).abs().max().item()
