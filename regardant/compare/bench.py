"""Doing a unit of a comparison: what comes out is its line of the results, whatever happens on the way."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from regardant.atlas.catalog import PACKAGE
from regardant.compare.commit import commit_of
from regardant.compare.costing import CostMeter, LeftOut, Shape
from regardant.compare.findings import Plan, System, read_plan
from regardant.compare.hardware import cores, processor
from regardant.compare.identity import made_with
from regardant.compare.lesson import Lesson
from regardant.compare.look_ahead import causality
from regardant.compare.machine import choose_device, versions
from regardant.compare.selection import check_options, kind_of
from regardant.compare.training import Refused, survey, train
from regardant.compare.unit import Unit

OUT_OF_MEMORY = ("allocate memory", "out of memory")


class Bench:
    """Does what it is told in a job: a plain mapping, so that it may come from another process or machine."""

    def __init__(self) -> None:
        self._lessons: dict[tuple[str, str, int, int, int], Lesson] = {}
        self._costs = CostMeter()
        self._costs.__enter__()

    def do(self, job: Mapping[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(job.get("threads") or cores())
        return getattr(self, "_" + job["do"])(job)

    def _look_around(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The device that a name stands for, and what it is; or why that, or an option, is not there."""
        try:
            device = str(choose_device(job["device"]))
            for spec in job["specs"]:
                check_options(spec)
        except ValueError as error:
            return {"error": str(error)}
        return {"device": device, "machine": machine_of(device)}

    def _survey(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What models of a system take, task by task; nothing where a model cannot be made or fails."""
        system, found = System(**job["system"]), {}
        for task, batch in job["tasks"].items():
            try:
                lesson = self._lesson(task, job["level"], job["dim"], job["heads"], job["layers"])
                found[task] = survey(system, lesson, batch=batch, device=job["device"])
            # Somebody's layer may raise anything; its unit will say what.
            except Exception as error:
                found[task] = {"failed": _last_line(error)}
        return found

    def _measure(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The line of a unit."""
        plan, unit = read_plan(job["plan"]), Unit(**job["unit"])
        system = next(each for each in plan.systems if each.name == unit.system)
        line: dict[str, Any] = {"outcome": "measured", "reason": None, "traceback": None, "found": None}
        began = perf_counter()
        try:
            line["found"] = getattr(self, f"_{unit.what}")(plan, unit, system, job)
        except LeftOut as left_out:
            line |= {"outcome": left_out.outcome, "reason": left_out.reason}
        except Refused as refused:
            line |= {"outcome": "skipped", "reason": str(refused)}
        # Somebody's layer may raise anything: it is written down, and the rest goes on.
        except Exception as error:
            line |= _failure(error, refusing=unit.what == "cost")
        return unit.asdict() | line | {"took": round(perf_counter() - began, 3)} | _origin(plan, unit, system)

    def _cost(self, plan: Plan, unit: Unit, system: System, job: Mapping[str, Any]) -> dict[str, Any]:
        shape = Shape(plan.dim, plan.heads, plan.device, kind_of(plan.systems), **job["look"])
        before = None if job.get("before") is None else tuple(job["before"])
        return self._costs.measure(system, shape, unit.phase, unit.length, before)

    def _quality(self, plan: Plan, unit: Unit, system: System, job: Mapping[str, Any]) -> dict[str, Any]:
        task = next(each for each in plan.tasks if each.name == unit.task)
        checkpoint = job.get("checkpoint")
        found = train(
            system, task, self._lesson(task.name, plan.level, plan.dim, plan.heads, plan.layers),
            seed=unit.seed, device=plan.device, maps=unit.seed == plan.seeds[0],
            checkpoint=None if checkpoint is None else Path(checkpoint),
            step_seconds=job.get("step_seconds", 0.0),
        )  # fmt: skip
        if checkpoint is not None:
            Path(checkpoint).unlink(missing_ok=True)
        return found

    def _probe(self, plan: Plan, unit: Unit, system: System, job: Mapping[str, Any]) -> dict[str, Any]:
        leaks = [leak for leak in map(causality, system.specs or system.parts) if leak is not None]
        if leaks:
            raise LeftOut("failed", f"it sees the future: {leaks[0]}")
        return {"said": "no change to the future moved the past"}

    def _lesson(self, task: str, level: str, dim: int, heads: int, layers: int) -> Lesson:
        """Made once: its data are the same for all models."""
        key = (task, level, dim, heads, layers)
        if key not in self._lessons:
            self._lessons[key] = Lesson(task, level, dim=dim, heads=heads, layers=layers)
        return self._lessons[key]


def machine_of(device: str) -> str:
    """What computes, in a line: "AMD EPYC, 2 cores", or the accelerator's name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {cores()} cores"


def _origin(plan: Plan, unit: Unit, system: System) -> dict[str, Any]:
    return {
        "machine": machine_of(plan.device), "device": plan.device, "versions": versions(),
        "commit": _commit(), "made_with": made_with(unit, system),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


@cache
def _commit() -> str | None:
    return commit_of(PACKAGE.parent)


def _failure(error: Exception, *, refusing: bool) -> dict[str, Any]:
    """A `ValueError` before anything is trained is a system that says what it does not take."""
    text = _last_line(error)
    if isinstance(error, MemoryError) or any(each in text.lower() for each in OUT_OF_MEMORY):
        outcome = "no memory"
    else:
        outcome = "skipped" if refusing and isinstance(error, ValueError) else "failed"
    return {"outcome": outcome, "reason": text, "traceback": "".join(traceback.format_exception(error))}


def _last_line(error: Exception) -> str:
    text = str(error).strip()
    said = text.splitlines()[0] if text else ""
    return said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}".rstrip(": ")
