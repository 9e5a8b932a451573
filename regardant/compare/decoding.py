"""The cost of one token more, behind so many: seconds a step, and bytes of the state."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor, nn

from regardant.compare.clock import Timing, wait_for
from regardant.compare.workload import Workload
from regardant.core.state import State

STEPS = 8
"""Steps in a row before another position has its turn."""


@torch.no_grad()
def clock_steps(
    workload: Workload, positions: Sequence[int], *, budget: float = 0.5, least: int = 40
) -> dict[int, tuple[Timing, int]]:
    """At each position the timing of a step and the bytes of the state there. The positions take turns."""
    layer, tokens = workload.layer(max(positions)), workload.draw(max(*positions, STEPS))
    synchronize = wait_for(tokens.device)
    states = _reach(layer, tokens, sorted(set(positions)))
    found = {position: state.nbytes for position, state in states.items()}
    seconds: dict[int, list[float]] = {position: [] for position in states}
    warm = False
    while not warm or min(map(len, seconds.values())) < least or sum(map(sum, seconds.values())) < budget:
        for position, state in states.items():
            for t in range(STEPS):
                synchronize()
                start = perf_counter()
                state = layer.step(tokens[:, t], state)[1]
                synchronize()
                seconds[position].append(perf_counter() - start)
            states[position] = state
        if not warm:
            warm, seconds = True, {position: [] for position in states}
    return {position: (Timing.of(seconds[position]), found[position]) for position in states}


def _reach(layer: nn.Module, tokens: Tensor, positions: Sequence[int]) -> dict[int, State]:
    """The state behind so many tokens: by `prefill` where the layer has it, else step by step."""
    if hasattr(layer, "prefill"):
        return {position: layer.prefill(tokens[:, :position])[1] for position in positions}
    states, state, at = {}, layer.start(tokens.shape[0]), 0
    for position in positions:
        while at < position:
            state = layer.step(tokens[:, at], state)[1]
            at += 1
        states[position] = state
    return states
