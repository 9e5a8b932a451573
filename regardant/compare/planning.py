"""Which measurements fit the time that there is: sizes, tasks, steps, seeds; and what is left out for it.

An outline follows from the budget and the machine. Then a short survey says what a training step of each
system takes, and the tasks and steps are chosen by that. No torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regardant.compare.findings import BASELINE, System
from regardant.compare.selection import kind_of
from regardant.compare.small_sizes import Size, size_for
from regardant.compare.trials import TRIALS, choose_trials
from regardant.core.errors import require

RESERVE = 0.08
"""Of the budget, for the report and what comes unforeseen."""

START = 8.0
"""Seconds until the workers run and the survey is made."""

COSTS_SHARE = 0.35
"""Of the budget, that costs may take before models have their turn."""

A_COST = 0.45
"""Seconds that a cost takes beside its repetitions: a process of its own for its peak."""

TRUST = 0.8
"""How much of the time that there seems to be is planned with."""

ROOM = 1.3
"""How many times the baseline's parameters every model may be given so that all systems find room."""

FEWEST = 3
"""Systems that are kept, however slow."""


@dataclass(frozen=True)
class Asked:
    """A comparison as it is asked for; None is for the plan to choose. Equal ones are the same one."""

    names: tuple[str, ...] = ()
    kind: str | None = None
    tasks: tuple[str, ...] | None = None
    lengths: tuple[int, ...] | None = None
    dim: int | None = None
    heads: int | None = None
    layers: int | None = None
    seeds: int | None = None
    budget: float = 240.0
    device: str = "auto"

    def __post_init__(self) -> None:
        require(self.budget > 0, f"budget is {self.budget:g} s, but measuring takes time")
        for name in ("dim", "heads", "layers", "seeds"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}, but it is at least 1")
        require(
            self.lengths is None or (len(self.lengths) >= 1 and min(self.lengths) >= 1),
            f"lengths is {self.lengths}, but it holds at least one number of tokens from 1 on",
        )

    def asdict(self) -> dict[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Outline:
    """What the budget and the machine settle before anything is run."""

    asked: Asked
    systems: tuple[System, ...]
    device: str
    slots: int
    size: Size
    tasks: tuple[str, ...]
    """Candidates, the most telling first."""

    @property
    def lengths(self) -> tuple[int, ...]:
        asked = self.asked.lengths
        return self.size.lengths if asked is None else tuple(sorted(set(asked)))

    def survey(self, system: System) -> dict[str, Any]:
        """The job that finds out what models of a system take."""
        batches = {name: TRIALS[name].sizes[self.size.level].batch for name in self.tasks}
        size = self.size
        return {
            "do": "survey", "system": asdict(system), "tasks": batches, "level": size.level, "dim": size.dim,
            "heads": size.heads, "layers": size.layers, "device": self.device,
        }  # fmt: skip


Survey = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""System → task → least, usual, step, evaluation; or failed."""


def outline(asked: Asked, systems: tuple[System, ...], *, device: str, slots: int) -> Outline:
    tasks = choose_trials(kind_of(systems), asked.tasks)
    models = len(systems) * (2 if asked.tasks is None else len(tasks)) * (asked.seeds or 2)
    size = size_for(asked.budget, slots, device, models=models)
    size = size.asked(dim=asked.dim, heads=asked.heads, layers=asked.layers)
    return Outline(asked, systems, device, slots, size, tuple(tasks))


def plan(out: Outline, survey: Survey) -> dict[str, Any]:
    """The plan, as it stands in `plan.json`, with what each measurement is thought to take."""
    asked, size, left_out = out.asked, out.size, list[str]()
    positions = size.positions if kind_of(out.systems) == "sequence" else ()
    costs = len(out.systems) * (2 * len(out.lengths) + len(positions))
    costs_take = min(costs * (A_COST + size.repeat), COSTS_SHARE * asked.budget)
    there_is = TRUST * max(asked.budget * (1 - RESERVE) - START - costs_take, 0.1 * asked.budget) * out.slots
    makers = {
        task: [each.name for each in out.systems if "step" in survey[each.name].get(task, {})]
        for task in out.tasks
    }
    tasks, seeds = _choose_tasks(out, survey, makers, there_is)
    if unfit := [name for name in out.tasks if name not in tasks]:
        left_out.append(f"the tasks {', '.join(unfit)}: {_spell(asked.budget)} are too short for them")
    slow = _leave_out_slow(out, survey, makers, tasks, seeds, there_is)
    for name, step in slow.items():
        left_out.append(f"models of {name}: a step takes {1e3 * step:.0f} ms, more than there is time for")
    scale = _scale(out, survey, makers, tasks, seeds, there_is)
    lessons, estimates = [], {}
    for name in tasks:
        setting = TRIALS[name].sizes[size.level]
        steps = min(max(round(setting.enough * scale), 1), setting.most)
        if steps < setting.least:
            left_out.append(
                f"{name} to its end: {steps} steps of the {setting.least} that it takes to see something"
            )
        lessons.append(_lesson(name, out, survey, makers[name], steps))
        estimates |= {
            f"{system}/{name}": survey[system][name]["step"] * steps + survey[system][name]["evaluation"]
            for system in makers[name]
        }
    if tasks and asked.seeds is None and seeds < size.seeds:
        left_out.append(f"more than {seeds} seeds: {_spell(asked.budget)} are too short for them")
    return {
        "asked": asked.asdict(), "systems": [asdict(each) for each in out.systems], "tasks": lessons,
        "lengths": list(out.lengths), "positions": list(positions), "dim": size.dim, "heads": size.heads,
        "layers": size.layers, "seeds": list(range(seeds)), "device": out.device, "budget": asked.budget,
        "left_out": left_out, "level": size.level, "without": sorted(slow),
        "look": {"repeat": size.repeat, "longest": size.longest}, "estimates": estimates,
        "steps_take": {f"{s}/{t}": survey[s][t]["step"] for t in tasks for s in makers[t]},
        "a_cost": A_COST + size.repeat,
    }  # fmt: skip


def _takes(
    out: Outline, survey: Survey, makers: Mapping[str, Sequence[str]], task: str
) -> tuple[float, float]:
    """Of one seed of a task, all systems: seconds with `enough` steps, and those that steps do not change."""
    enough = TRIALS[task].sizes[out.size.level].enough
    own = [survey[system][task] for system in makers[task]]
    return sum(each["step"] for each in own) * enough, sum(2 * each["evaluation"] + 0.2 for each in own)


def _choose_tasks(
    out: Outline, survey: Survey, makers: Mapping[str, Sequence[str]], there_is: float
) -> tuple[list[str], int]:
    """As many tasks as find enough steps with two seeds, two at least; then more seeds, if they fit."""
    wanted = out.asked.seeds or 2
    if out.asked.tasks is not None:
        tasks = list(out.tasks)
    else:
        tasks, spent = [], 0.0
        for task in out.tasks:
            spent += sum(_takes(out, survey, makers, task)) * wanted
            if len(tasks) < 2 or spent <= there_is:
                tasks.append(task)
            else:
                break
    a_seed = sum(sum(_takes(out, survey, makers, task)) for task in tasks)
    if out.asked.seeds is None and tasks and a_seed * out.size.seeds <= there_is:
        wanted = out.size.seeds
    return tasks, wanted


def _leave_out_slow(
    out: Outline, survey: Survey, makers: dict[str, list[str]], tasks: Sequence[str], seeds: int,
    there_is: float,
) -> dict[str, float]:  # fmt: skip
    """While the tasks do not find their least steps, the slowest system trains no models: name → its step."""
    slow: dict[str, float] = {}
    steps = {
        each.name: sum(survey[each.name][task]["step"] for task in tasks if each.name in makers[task])
        for each in out.systems
        if each.name != BASELINE
    }
    while len(steps) - len(slow) >= FEWEST and _scale(out, survey, makers, tasks, seeds, there_is) < min(
        (
            setting.least / setting.enough
            for setting in (TRIALS[task].sizes[out.size.level] for task in tasks)
        ),
        default=0.0,
    ):
        name = max((name for name in steps if name not in slow), key=steps.__getitem__)
        slow[name] = max(survey[name][task]["step"] for task in tasks if name in makers[task])
        for task in tasks:
            makers[task] = [each for each in makers[task] if each != name]
    return slow


def _scale(
    out: Outline, survey: Survey, makers: Mapping[str, Sequence[str]], tasks: Sequence[str], seeds: int,
    there_is: float,
) -> float:  # fmt: skip
    """How many times `enough` steps there is time for."""
    takes = [_takes(out, survey, makers, task) for task in tasks]
    steps, fixed = (sum(each) * seeds for each in zip(*takes)) if takes else (0.0, 0.0)
    return max(there_is - fixed, 0.05 * there_is) / steps if steps else 1.0


def _lesson(name: str, out: Outline, survey: Survey, makers: Sequence[str], steps: int) -> dict[str, Any]:
    trial, setting = TRIALS[name], TRIALS[name].sizes[out.size.level]
    own = {system: survey[system][name] for system in makers}
    usual = (
        own[BASELINE]["usual"]
        if BASELINE in own
        else max((each["usual"] for each in own.values()), default=0)
    )
    # Where a system has more parameters than there is room for, all models become larger, up to a point.
    wanted = max([usual, *(each["least"] for each in own.values() if each["least"] <= ROOM * usual)])
    return {
        "name": name, "title": trial.title, "measure": trial.measure,
        "higher_is_better": trial.higher_is_better, "steps": steps, "batch": setting.batch,
        "length": next((each["tokens"] for each in own.values()), 0), "parameters": wanted,
        "chance": trial.chance(out.size.level), "about": trial.about.format(**setting.task),
        "kind": kind_of(out.systems),
    }  # fmt: skip


def _spell(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:g} hours"
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"
