"""What a comparison found, read from its folder: plain data, without torch.

    findings = Findings.read(Path("reports/compare"))
    findings.costs, findings.runs, findings.growths(), findings.crossovers(), findings.standings("recall")

A folder holds `plan.json` (what is measured, and what was left out) and `results.jsonl` (one line a
measurement, in the order in which they were made). A folder whose comparison is on its way, or was killed,
reads as well: what is not yet measured is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from regardant.compare.crossing import Crossover, FittedGrowth, find_crossover, fit_growth
from regardant.compare.planned import BASELINE, Plan, System, TaskPlan, read_plan
from regardant.compare.standing import Standing, rank
from regardant.core.errors import require

PLAN, RESULTS, REPORT = "plan.json", "results.jsonl", "report.html"
"""The files of a comparison's folder."""

FAR = 0.1
"""Better by far: by so much accuracy, or by this share of the baseline's measure."""

PHASES = ("forward", "backward", "decode")
"""`backward` is forward and backward together; `decode` is one token more, behind so many."""


@dataclass(frozen=True)
class Cost:
    """Time and memory of one layer at a length; the figures are None where `left_out` says why."""

    system: str
    phase: str
    length: int
    """Tokens of the input; positions of a map; in decoding the tokens before."""
    seconds: float | None = None
    """Of a call: the median of the repetitions."""
    spread: tuple[float, float] | None = None
    """The quartiles of the repetitions, seconds."""
    best: float | None = None
    repetitions: int | None = None
    bytes: int | None = None
    """How far the peak memory of a process rises; not measured in decoding."""
    state_bytes: int | None = None
    """In decoding: the size of the state behind so many tokens."""
    left_out: str | None = None


@dataclass(frozen=True)
class Curve:
    """A measure at several distances or lengths, of one trained model."""

    measure: str
    over: str
    """What the points lie over: "distance" or "length", tokens."""
    points: tuple[tuple[float, float], ...]
    trained_at: float | None = None
    """The length of training, where the points are lengths: all beyond it is extrapolation."""


@dataclass(frozen=True)
class Run:
    """One model, trained with one seed on one task."""

    system: str
    task: str
    seed: int
    value: float
    """The task's measure on its validation data."""
    parameters: int
    tokens: int
    """Seen in training."""
    seconds: float
    """The training took."""
    learning: tuple[tuple[int, float], ...]
    """Tokens seen, and the loss there."""
    curves: tuple[Curve, ...]
    probe: str | None = None
    """Only of a model that was better than it should be: what the causality probe said. A `Failure` stands
    instead of the run where it saw the future."""


@dataclass(frozen=True)
class AttentionMap:
    """How much each query of one head takes of each key, in a trained model."""

    system: str
    task: str
    layer: int
    head: int
    matrix: tuple[tuple[float, ...], ...]
    """Queries by keys. Rows sum to one in softmax, and need not in others; they may be negative."""
    tokens: tuple[str, ...]
    """The input, the same for all systems of a task."""


@dataclass(frozen=True)
class Failure:
    """A measurement that there is not: the system could not take it, or it failed."""

    system: str
    unit: str
    """Which measurement: "cost/moh/forward/4096", "quality/moh/recall/0"."""
    outcome: str
    """skipped (it cannot or need not be measured), failed, or no memory."""
    reason: str
    traceback: str | None = None


@dataclass(frozen=True)
class Origin:
    """Where measurements come from. Usually one; more where a folder was continued elsewhere."""

    machine: str
    device: str
    versions: Mapping[str, str]
    commit: str | None
    first: str
    """The date and time of its first measurement, ISO, UTC; and of its last."""
    last: str
    measurements: int


@dataclass(frozen=True)
class Findings:
    """All that is in a comparison's folder."""

    folder: Path
    plan: Plan
    costs: tuple[Cost, ...]
    runs: tuple[Run, ...]
    maps: tuple[AttentionMap, ...]
    failures: tuple[Failure, ...]
    origins: tuple[Origin, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        path = folder / PLAN
        require(path.is_file(), f"{folder} holds no comparison: there is no {PLAN}")
        plan = read_plan(json.loads(path.read_text(encoding="utf-8")))
        # What was measured again, by other code, stands in a later line.
        lines = list({line["unit"]: line for line in read_lines(folder / RESULTS)}.values())
        of = {what: [line for line in lines if line["what"] == what] for what in ("cost", "quality", "probe")}
        said = {(line["system"], line["task"]): line["found"] for line in of["probe"]}
        blind = {system for system, _ in (key for key, found in said.items() if found is None)}
        measured = [
            line for line in of["quality"] if line["outcome"] == "measured" and line["system"] not in blind
        ]
        return cls(
            folder=folder,
            plan=plan,
            costs=tuple(map(_cost, of["cost"])),
            runs=tuple(_run(line, said.get((line["system"], line["task"]))) for line in measured),
            maps=tuple(each for line in measured for each in _maps(line)),
            failures=tuple(each for line in lines for each in _failures(line)),
            origins=_origins(lines),
        )

    @property
    def names(self) -> list[str]:
        return [system.name for system in self.plan.systems]

    def task(self, name: str) -> TaskPlan:
        return next(task for task in self.plan.tasks if task.name == name)

    def costs_of(self, system: str, phase: str) -> list[Cost]:
        """By length, those without figures too."""
        own = (cost for cost in self.costs if (cost.system, cost.phase) == (system, phase))
        return sorted(own, key=lambda cost: cost.length)

    def runs_of(self, system: str, task: str) -> list[Run]:
        return [run for run in self.runs if (run.system, run.task) == (system, task)]

    def standings(self, task: str) -> list[Standing]:
        """The systems by their mean over seeds, best first, with spreads and ties (`standing.py`)."""
        values = {name: [run.value for run in self.runs_of(name, task)] for name in self.names}
        return rank(
            {name: own for name, own in values.items() if own},
            higher_is_better=self.task(task).higher_is_better,
        )

    def too_good(self, task: str) -> list[str]:
        """The systems that are better by far than the baseline, the bound of most tasks: to be probed."""
        found = {each.system: each for each in self.standings(task)}
        if BASELINE not in found:
            return []
        baseline = found[BASELINE]
        sign = 1 if self.task(task).higher_is_better else -1
        far = FAR if self.task(task).measure == "accuracy" else FAR * abs(baseline.mean)
        return [
            name
            for name, each in found.items()
            if sign * (each.mean - baseline.mean) > far and name not in baseline.ties
        ]

    def growths(self) -> list[FittedGrowth]:
        """Of every system, phase and quantity that was measured at two lengths or more."""
        found = []
        for system in self.names:
            for phase in PHASES:
                for quantity in ("seconds", "bytes") if phase != "decode" else ("seconds", "state_bytes"):
                    fitted = fit_growth(self._figures(system, phase, quantity), system, phase, quantity)
                    found += [] if fitted is None else [fitted]
        return found

    def crossovers(self) -> list[Crossover]:
        """Of every system but the baseline and of every phase, where both were measured."""
        found = (
            find_crossover(
                self._figures(name, phase, "seconds"), self._figures(BASELINE, phase, "seconds"), name, phase
            )
            for name in self.names
            for phase in PHASES
            if name != BASELINE
        )  # fmt: skip
        return [each for each in found if each is not None]

    def _figures(self, system: str, phase: str, quantity: str) -> dict[int, float]:
        """Length → figure, where there is one. Times are those of the least disturbed repetition."""
        field = "best" if quantity == "seconds" else quantity
        figures = {cost.length: getattr(cost, field) for cost in self.costs_of(system, phase)}
        return {length: value for length, value in figures.items() if value is not None}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of the results; a last line that a crash tore is passed over."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text[: text.rfind("\n") + 1].splitlines():
        yield json.loads(line)


def _cost(line: Mapping[str, Any]) -> Cost:
    found = line["found"] or {}
    if "spread" in found:
        found = found | {"spread": tuple(found["spread"])}
    left_out = line["reason"] if line["outcome"] != "measured" else None
    return Cost(line["system"], line["phase"], line["length"], **found, left_out=left_out)


def _run(line: Mapping[str, Any], probe: Mapping[str, str] | None) -> Run:
    found = {name: value for name, value in line["found"].items() if name not in ("maps", "no_maps")}
    found["probe"] = None if probe is None else probe["said"]
    curves = tuple(
        Curve(**curve | {"points": tuple(map(tuple, curve["points"]))}) for curve in found.pop("curves")
    )
    learning = tuple(map(tuple, found.pop("learning")))
    return Run(line["system"], line["task"], line["seed"], **found, learning=learning, curves=curves)


def _maps(line: Mapping[str, Any]) -> Iterator[AttentionMap]:
    for each in line["found"].get("maps", ()):
        yield AttentionMap(
            line["system"], line["task"], each["layer"], each["head"],
            matrix=tuple(map(tuple, each["matrix"])), tokens=tuple(each["tokens"]),
        )  # fmt: skip


def _failures(line: Mapping[str, Any]) -> Iterator[Failure]:
    if line["outcome"] != "measured":
        yield Failure(line["system"], line["unit"], line["outcome"], line["reason"], line.get("traceback"))
    elif "no_maps" in line["found"]:
        yield Failure(
            line["system"], f"maps/{line['system']}/{line['task']}", "skipped", line["found"]["no_maps"]
        )


def _origins(lines: list[dict[str, Any]]) -> tuple[Origin, ...]:
    by_origin: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        key = json.dumps([line[name] for name in ("machine", "device", "versions", "commit")])
        by_origin.setdefault(key, []).append(line)
    return tuple(
        Origin(*json.loads(key), min(own := [line["date"] for line in each]), max(own), len(own))
        for key, each in by_origin.items()
    )


__all__ = [
    "BASELINE",
    "AttentionMap",
    "Cost",
    "Crossover",
    "Curve",
    "Failure",
    "Findings",
    "FittedGrowth",
    "Origin",
    "Plan",
    "Run",
    "Standing",
    "System",
    "TaskPlan",
    "read_lines",
    "read_plan",
]  # fmt: skip
