"""Cost against what is declared: work and memory of a pass, size of a state, work of a step.

Growth is the exponent between two sizes, counted (`regardant.contract.meter`), never timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import log2, prod
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from regardant.contract.drawing import Case, Trials, Use
from regardant.contract.meter import Meter, exponent
from regardant.contract.order import begin, take_step
from regardant.contract.report import Broken, Skip
from regardant.contract.subject import Inputs, Subject
from regardant.core.state import Cache, State

TIME_MARGIN = 0.22
"""What the measured exponent may exceed the declared one by. n·log n measures 1.1 here; a third more work at
the longer length, where weights that short texts keep for the way back are computed again, adds 0.21."""
MEMORY_MARGIN = 0.15
"""The same of memory, where nothing is computed twice."""
STEPS = (1024, 2048)
"""Where decoding is measured."""
LISTENING = 9
"""Steps over which a step's work is the median: a cache makes room only now and then."""


def time(trials: Trials) -> str:
    """The work of `forward`, and of `forward` with `backward`, grows as declared."""
    declared = _declared(trials.subject)
    found = []
    for use in trials.uses():
        for backward, small, large, times, sizes in _passes(trials.subject, use):
            growth = exponent(small.work, large.work, times)
            found.append(growth)
            if growth > declared.time + TIME_MARGIN:
                raise Broken(
                    f"the work of {_named(backward, use)} grows as n^{growth:.2f} between {sizes}, "
                    f"but n^{declared.time:g} is declared"
                )
    return f"work grows as n^{max(found):.2f}, declared n^{declared.time:g}"


def memory(trials: Trials) -> str:
    """The peak memory of a pass grows as declared."""
    declared = _declared(trials.subject)
    found = []
    for use in trials.uses():
        for backward, small, large, times, sizes in _passes(trials.subject, use):
            growth = exponent(small.peak, large.peak, times)
            found.append(growth)
            if growth > declared.memory + MEMORY_MARGIN:
                raise Broken(
                    f"the peak memory of {_named(backward, use)} grows as n^{growth:.2f} between {sizes}, "
                    f"but n^{declared.memory:g} is declared"
                )
    return f"peak memory grows as n^{max(found):.2f}, declared n^{declared.memory:g}"


def _declared(subject: Subject):
    if subject.supports is None:
        raise Skip("it declares no growth")
    return subject.supports


def _named(backward: bool, use: Use) -> str:
    deed = "forward and backward" if backward else "forward"
    return deed if use.causal is None else f"{deed} ({use})"


def _passes(subject: Subject, use: Use) -> Iterator[tuple[bool, Meter, Meter, float, str]]:
    """(with backward?, the small meter, the large one, how many times as many positions, both sizes)."""
    declared = _declared(subject)
    # What is quadratic shows it early, and would be slow to let grow.
    lengths = (1024, 4096) if declared.time < 2 else (512, 2048)
    axes = len(subject.sizes[0])
    flat, sides = axes == 1, (32, 64) if declared.time < 2 else (24, 48)
    if axes == 3:
        sides = (16, 24) if declared.time < 2 else (8, 13)
    sizes = [(length,) for length in lengths] if flat else [(side,) * axes for side in sides]
    times = prod(sizes[1]) / prod(sizes[0])
    said = " and ".join("×".join(map(str, size)) for size in sizes) + (" tokens" if flat else "")
    for backward in (False, True) if declared.gradients else (False,):
        small, large = (measured(subject, _case(subject, use, size), backward=backward) for size in sizes)
        yield backward, small, large, times, said


def _case(subject: Subject, use: Use, size: tuple[int, ...]) -> Case:
    return Case(
        size, batch=1, heads=subject.plain_heads, causal=use.causal, across=use.across,
        keys=size[0] if use.across else 0,
    )  # fmt: skip


def measured(subject: Subject, case: Case, *, backward: bool) -> Meter:
    """Work and memory of one pass in float32; each pass is metered once a suite."""
    key = (case, backward)
    if key not in subject.metered:
        layer = subject.build(case, dtype=torch.float32)
        inputs = subject.inputs(case, dtype=torch.float32)
        meter = Meter()
        if not backward:
            with torch.no_grad(), meter:
                subject.forward(layer, inputs)
        else:
            given = Inputs(inputs.x.requires_grad_(), inputs.context)
            with meter:
                subject.forward(layer, given).sum().backward()
        subject.metered[key] = meter
    return subject.metered[key]


def state(trials: Trials) -> str:
    """The decoding state has the declared size."""
    declared, sizes, _ = _decoded(trials)
    growth = log2(max(sizes[1], 1) / max(sizes[0], 1)) / log2(STEPS[1] / STEPS[0])
    said = f"the state holds {sizes[0]:,} bytes after {STEPS[0]} tokens and {sizes[1]:,} after {STEPS[1]}"
    if growth > declared.state + 0.1:
        raise Broken(f"{said}, so it grows as n^{growth:.2f}, but n^{declared.state:g} is declared")
    return f"{said}, declared n^{declared.state:g}"


def decoding(trials: Trials) -> str:
    """The work of a step grows no faster than the declared state."""
    declared, _, work = _decoded(trials)
    growth = exponent(work[0], work[1], STEPS[1] / STEPS[0])
    said = f"the work of a step grows as n^{growth:.2f} between tokens {STEPS[0]} and {STEPS[1]}"
    if growth > declared.state + 0.1:
        raise Broken(f"{said}, but the declared state allows n^{declared.state:g}")
    return f"{said}, the declared state allows n^{declared.state:g}"


def _decoded(trials: Trials):
    """What is declared, the bytes of the state and the work of a step after so many tokens each."""
    subject = trials.subject
    declared = _declared(subject)
    if not subject.has_step:
        raise Skip("it does not decode step by step")
    use = trials.uses(causal=True, across=False)[0]
    key = ("decoding", use)
    if key not in subject.metered:
        case = _case(subject, use, (STEPS[1] + 1,))
        layer = subject.build(case, dtype=torch.float32)
        inputs = subject.inputs(case, dtype=torch.float32)
        sizes, work = [], []
        with torch.no_grad():
            state = begin(layer, inputs)
            for t in range(STEPS[1] + 1):
                if t in STEPS:
                    sizes.append(held(state))
                    work.append(median(heard))
                if t + LISTENING in range(STEPS[0], STEPS[0] + 1) or t + LISTENING == STEPS[1]:
                    heard: list[int] = []
                if any(end - LISTENING <= t < end for end in STEPS):
                    with (meter := Meter()):
                        _, state = take_step(layer, inputs.x[:, t], state)
                    heard.append(meter.work)
                else:
                    _, state = take_step(layer, inputs.x[:, t], state)
        subject.metered[key] = (sizes, work)
    return declared, *subject.metered[key]


def held(state: Any) -> int:
    """The bytes of every tensor that a state holds, however it holds it (of a cache: its rows)."""
    seen: dict[int, Tensor] = {}

    def count(value: Any) -> int:
        if isinstance(value, nn.Module) or id(value) in seen:
            return 0
        if isinstance(value, Tensor):
            seen[id(value)] = value
            return value.numel() * value.element_size()
        if isinstance(value, Cache):
            return count(value.rows)
        if isinstance(value, dict):
            return sum(map(count, value.values()))
        if isinstance(value, list | tuple | set):
            return sum(map(count, value))
        if isinstance(value, State) or is_dataclass(value):
            own = {item.name for item in fields(value)}
            more = [inner for name, inner in getattr(value, "__dict__", {}).items() if name not in own]
            return sum(count(getattr(value, name)) for name in own) + sum(map(count, more))
        return sum(map(count, vars(value).values())) if hasattr(value, "__dict__") else 0

    return count(state)
