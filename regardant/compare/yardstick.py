"""The yardstick of CAB (Zhang et al., 2022, arXiv:2210.07661): which of the four uses of attention a mixer
serves, how it compares over several tasks and metrics, and from which length on it pays.

    served("performer")              {"noncausal self": True, "causal self": True, …}, found by trying
    compositional_index(…)           one number a mixer: z-scores, averaged by task and then by use
    efficiency_length(…)             the length from which it costs less than the baseline, seen and fitted

Every registered mixer is put through `served` by the tests. As in the paper, the two causal tests change or
cut the later queries, of causal cross-attention too, whose memory is visible as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import torch
from torch import Tensor

from regardant.atlas import catalog
from regardant.contract.drawing import Case, Use
from regardant.contract.recognise import recognise
from regardant.contract.report import Broken
from regardant.contract.subject import Inputs, Subject
from regardant.core.errors import require
from regardant.core.mixer import Mixer

USES = {
    "noncausal self": Use(False),
    "causal self": Use(True),
    "noncausal cross": Use(False, across=True),
    "causal cross": Use(True, across=True),
}
LENGTH = 24
FARTHEST = 1000
"""How many times the longest measured length a fitted curve is believed."""


def declared(name: str) -> dict[str, bool]:
    """The uses that a mixer says it has."""
    supports = catalog.resolve(name).supports
    names = ("noncausal", "causal", "cross", "causal_cross")
    return {use: getattr(supports, its) for use, its in zip(USES, names)}


def served(mixer: str | type[Mixer]) -> dict[str, bool]:
    """The uses that a mixer really has: it can be made so, it runs, and causal ones do not look ahead.

    It is looked at in evaluation and in double precision: random draws are then fixed, and what moves, moves
    by more than rounding.
    """
    name = mixer if isinstance(mixer, str) else mixer.__name__
    subject = recognise(catalog.resolve(mixer) if isinstance(mixer, str) else mixer, name=name)
    require(subject.kind == "sequence", f"{name!r} is of kind {subject.kind}, but only mixers have uses")
    return {title: _serves(subject, use) for title, use in USES.items()}


def _serves(subject: Subject, use: Use) -> bool:
    case = Case(
        (LENGTH,), heads=subject.plain_heads, causal=use.causal, across=use.across,
        keys=LENGTH + 3 if use.across else 0,
    )  # fmt: skip
    inputs = subject.inputs(case)
    try:
        layer = subject.build(case)
        with torch.no_grad():
            whole = subject.forward(layer, inputs)
            if use.causal is not getattr(layer, "causal", use.causal):
                return False
            if use.across and _blind(subject, layer, inputs, whole):
                return False
            return not use.causal or not _looks_ahead(subject, layer, inputs, whole)
    except Broken:
        return False


def _looks_ahead(subject: Subject, layer, inputs: Inputs, whole: Tensor) -> bool:
    """Whether leaving out or changing later queries moves earlier outputs."""
    cut = LENGTH // 2
    louder = inputs.x.clone()
    louder[:, cut:] = louder[:, cut:].flip(1) * 30
    for changed in (inputs.x[:, :cut].contiguous(), louder):
        found = subject.forward(layer, replace(inputs, x=changed))[:, :cut]
        if not (found - whole[:, :cut]).abs().max() <= subject.tolerance * whole.abs().max().clamp(min=1):
            return True
    return False


def _blind(subject: Subject, layer, inputs: Inputs, whole: Tensor) -> bool:
    """Whether the memory makes no difference."""
    other = subject.forward(layer, replace(inputs, context=inputs.context.flip(0)))
    return bool((other - whole).abs().max() <= subject.tolerance)


@dataclass(frozen=True)
class Metric:
    """One metric of one task in one use: mixer → value."""

    use: str
    task: str
    name: str
    higher_is_better: bool
    values: Mapping[str, float]


def compositional_index(metrics: Sequence[Metric]) -> dict[str, dict[str, float]]:
    """Use → mixer → index. Values become z-scores over the mixers compared, signed so that higher is better,
    averaged over the metrics of a task and then over the tasks of a use. A mixer that lacks a task of a use
    has no index there."""
    require(len(metrics) >= 1, "metrics is empty, but an index is made of at least one")
    scores: dict[str, dict[str, list[dict[str, float]]]] = {}
    for metric in metrics:
        scores.setdefault(metric.use, {}).setdefault(metric.task, []).append(_z_scores(metric))
    return {
        use: {
            mixer: fmean(fmean(each[mixer] for each in found) for found in tasks.values())
            for mixer in _in_all([each for found in tasks.values() for each in found])
        }
        for use, tasks in scores.items()
    }


def _z_scores(metric: Metric) -> dict[str, float]:
    values = metric.values
    require(
        len(values) >= 2 and all(map(math.isfinite, values.values())),
        f"{metric.name} of {metric.task!r} has {len(values)} values, but it takes 2 finite ones to compare",
    )
    mean, spread = fmean(values.values()), pstdev(values.values())
    sign = 1 if metric.higher_is_better else -1
    return {mixer: sign * (value - mean) / spread if spread else 0.0 for mixer, value in values.items()}


def _in_all(found: Sequence[Mapping[str, float]]) -> list[str]:
    return [mixer for mixer in found[0] if all(mixer in each for each in found)]


@dataclass(frozen=True)
class EfficiencyLength:
    """From which length on a mixer costs less than the baseline; infinite where it never does."""

    seen: float
    """Between the measured lengths, by interpolation of the ratio; at the shortest where it always does."""
    fitted: float
    """Where the fitted curves cross: a quadratic for the baseline, a straight line for the mixer."""


def efficiency_length(
    lengths: Sequence[int], ours: Sequence[float], baseline: Sequence[float]
) -> EfficiencyLength:
    """From costs (times, bytes, operations) at the same lengths, shortest first."""
    require(
        len(lengths) == len(ours) == len(baseline) >= 3 and list(lengths) == sorted(set(lengths)),
        f"lengths is {list(lengths)} with {len(ours)} and {len(baseline)} costs, but it takes at least 3 "
        "rising lengths with a cost each",
    )
    require(min(*ours, *baseline) > 0, "a cost is not positive, but times, bytes and operations are")
    return EfficiencyLength(_seen(lengths, ours, baseline), _fitted(lengths, ours, baseline))


def _seen(lengths, ours, baseline) -> float:
    behind = [math.log(mine / its) for mine, its in zip(ours, baseline)]
    if behind[-1] > 0:
        return math.inf
    last = max((at for at, each in enumerate(behind) if each > 0), default=None)
    if last is None:
        return float(lengths[0])
    share = behind[last] / (behind[last] - behind[last + 1])
    return math.exp((1 - share) * math.log(lengths[last]) + share * math.log(lengths[last + 1]))


def _fitted(lengths, ours, baseline) -> float:
    mine, its = _curve(lengths, ours, powers=(0, 1)), _curve(lengths, baseline, powers=(0, 1, 2))
    c, b, a = its[0] - mine[0], its[1] - mine[1], its[2]
    root = b * b - 4 * a * c
    if root <= 0:
        return 1.0  # the baseline lies above everywhere
    crossing = (-b + math.sqrt(root)) / (2 * a) if a > 0 else math.inf
    return math.inf if crossing > FARTHEST * lengths[-1] else max(crossing, 1.0)


def _curve(lengths: Sequence[int], costs: Sequence[float], *, powers: Sequence[int]) -> list[float]:
    """Coefficients, none negative, by least squares on relative errors."""
    n = torch.tensor(lengths, dtype=torch.float64)
    cost = torch.tensor(costs, dtype=torch.float64)
    kept = list(powers)
    while True:
        columns = torch.stack([(n / n[-1]) ** power / cost for power in kept], dim=1)
        found = torch.linalg.lstsq(columns, torch.ones(len(n), 1, dtype=torch.float64)).solution[:, 0]
        if len(kept) == 1 or found.min() >= 0:
            break
        del kept[int(found.argmin())]
    scaled = {power: float(value / n[-1] ** power) for power, value in zip(kept, found)}
    return [scaled.get(power, 0.0) for power in powers]
