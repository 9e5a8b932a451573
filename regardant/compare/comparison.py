"""A comparison from the question to the findings: plans, has everything measured, writes it down as it comes.

This process only hands out jobs and is the only one that writes results: nothing is there twice, and whenever
it is killed, the next run with the same question goes on. No torch is imported here.
"""

from __future__ import annotations

import platform
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from regardant import __version__
from regardant.atlas.catalog import PACKAGE
from regardant.compare.commit import commit_of
from regardant.compare.engine import Done, Engine
from regardant.compare.findings import Findings, System, read_plan
from regardant.compare.folder import Folder
from regardant.compare.hardware import torch_version
from regardant.compare.identity import made_with
from regardant.compare.planning import COSTS_SHARE, RESERVE, Asked, outline, plan
from regardant.compare.selection import select
from regardant.compare.unit import Unit, probe, units
from regardant.core.errors import require

TRIES = 2
"""How often a unit is begun whose process dies: once more, in case it was killed by somebody else."""

WAIT = 0.5
"""Seconds between two looks at the clock."""


@dataclass(frozen=True)
class Tick:
    """How far a comparison is."""

    done: int
    of: int
    now: tuple[str, ...]
    """What is being measured."""
    left: float | None
    """Seconds until the end, about."""


Progress = Callable[[Tick], None]


class Comparison:
    """`run` measures what is not yet known, until the budget is spent, and returns what is known then."""

    def __init__(
        self, asked: Asked, folder: Folder, *, engine: Callable[[], Engine],
        progress: Progress = lambda tick: None, same_machine: bool = True,
    ):  # fmt: skip
        self.asked, self.folder, self.progress, self.same_machine = asked, folder, progress, same_machine
        self.systems = {each.name: each for each in select(asked.names, asked.kind)}
        self._start, self._engine = engine, None
        self._began = monotonic()
        self._lines: dict[str, dict[str, Any]] = {}
        self._plan: dict[str, Any] | None = folder.plan(asked)
        self._died: Counter[str] = Counter()
        self._machine = ""

    def run(self) -> Findings:
        try:
            if self._plan is None:
                self._arrange()
            self._recall()
            if self._missing():
                self._measure(self._missing(), until=self._began + self.asked.budget * (1 - RESERVE))
            if suspects := self._suspects():
                self._measure(suspects, until=self._began + self.asked.budget)
        finally:
            if self._engine is not None:
                self._engine.close()
        return Findings.read(self.folder.path)

    @property
    def missing(self) -> int:
        """How many measurements of the plan there are not yet."""
        return len(self._missing())

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._start()
            self._look_around()
        return self._engine

    def _look_around(self) -> None:
        device = self.asked.device if self._plan is None else self._plan["device"]
        specs = [spec for system in self.systems.values() for spec in system.specs if "@" in spec]
        (found,) = self._ask({"device": {"do": "look_around", "device": device, "specs": specs}}).values()
        ended = f"device is {device!r}, and the process that was to look at it ended before it answered"
        require("device" in found, found.get("error", ended))
        self._device, self._machine = found["device"], found["machine"]
        require(
            self._plan is None or not self.same_machine or self._plan["machine"] == self._machine,
            f"out is {self.folder.path}, where {(self._plan or {}).get('machine')} was measured, but this is "
            f"{self._machine}: name another folder, or begin again with --fresh",
        )

    def _arrange(self) -> None:
        """Make the plan and keep it."""
        engine = self.engine
        out = outline(self.asked, tuple(self.systems.values()), device=self._device, slots=engine.slots)
        jobs = {
            system.name: out.survey(system) | {"threads": engine.threads} for system in self.systems.values()
        }
        survey = self._ask(jobs)
        self._plan = plan(out, survey) | {"machine": self._machine}
        self.folder.keep_plan(self._plan)

    def _ask(self, jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The answers to jobs whose answers are no results; of a process that died, nothing."""
        waiting, found, running = deque(jobs), {}, set()
        while len(found) < len(jobs):
            while waiting and len(running) < self._engine.slots:
                name = waiting.popleft()
                running.add(name)
                self._engine.submit(name, jobs[name], alone=False)
            self.progress(Tick(len(found), len(jobs), tuple(f"look at {name}" for name in running), None))
            for done in self._engine.wait(WAIT):
                running.discard(done.name)
                found[done.name] = done.answer or {}
        return found

    def _recall(self) -> None:
        """What the folder knows already, measured by this very code."""
        wanted = {unit.name: unit for unit in units(read_plan(self._plan))}
        for line in self.folder.results:
            unit = wanted.get(line["unit"]) or Unit("probe", line["system"], task=line.get("task"))
            if unit.name == line["unit"] and line["made_with"] == made_with(
                unit, self._system(line["system"])
            ):
                self._lines[unit.name] = line

    def _missing(self) -> list[Unit]:
        return [unit for unit in units(read_plan(self._plan)) if unit.name not in self._lines]

    def _suspects(self) -> list[Unit]:
        """Probes of what is better than it should be, as far as they are not made."""
        findings = Findings.read(self.folder.path)
        found = [
            probe(system, task.name)
            for task in findings.plan.tasks
            if task.kind == "sequence"
            for system in findings.too_good(task.name)
        ]
        return [unit for unit in found if unit.name not in self._lines]

    def _measure(self, todo: Iterable[Unit], *, until: float) -> None:
        waiting, running = deque(todo), dict[str, Unit]()
        engine = self.engine
        costs_until = monotonic() + COSTS_SHARE * (until - monotonic())
        while (waiting or running) and monotonic() < until:
            if monotonic() > costs_until and any(not unit.alone for unit in waiting):
                waiting = deque(sorted(waiting, key=lambda unit: unit.alone))
            while (unit := self._next(waiting, running)) is not None:
                waiting.remove(unit)
                running[unit.name] = unit
                engine.submit(unit.name, self._job(unit), alone=unit.alone)
            self._tell(waiting, running, until)
            for done in engine.wait(min(WAIT, max(until - monotonic(), 0.01))):
                unit = running.pop(done.name)
                if done.answer is None and self._died[unit.name] + 1 < TRIES:
                    self._died[unit.name] += 1
                    waiting.appendleft(unit)
                    continue
                self._write(unit, done)
        self._tell(waiting, running, until)

    def _next(self, waiting: deque[Unit], running: dict[str, Unit]) -> Unit | None:
        """The next unit that may begin now: what is timed runs alone, and after what is shorter."""
        if not waiting:
            return None
        alone = waiting[0].alone
        if any(unit.alone is not alone for unit in running.values()):
            return None
        if len(running) >= (self._engine.alone if alone else self._engine.slots):
            return None
        busy = {(unit.system, unit.phase) for unit in running.values() if alone}
        ready = (unit for unit in waiting if unit.alone is alone and (unit.system, unit.phase) not in busy)
        return next(ready, None)

    def _job(self, unit: Unit) -> dict[str, Any]:
        job: dict[str, Any] = {"do": "measure", "plan": self._plan, "unit": asdict(unit)}
        if unit.what == "cost":
            return job | {"look": self._plan["look"], "before": self._before(unit), "threads": None}
        return job | {
            "threads": self._engine.threads, "checkpoint": str(self.folder.checkpoint(unit.name).absolute()),
            "step_seconds": self._plan["steps_take"].get(f"{unit.system}/{unit.task}", 0.0),
        }  # fmt: skip

    def _before(self, unit: Unit) -> tuple[int, float] | None:
        """The longest shorter input of the same measurement, and the seconds that it took."""
        known = [
            (line["length"], line["found"]["best"])
            for line in self._lines.values()
            if (line["what"], line["system"], line.get("phase")) == ("cost", unit.system, unit.phase)
            and line["outcome"] == "measured"
            and line["length"] < unit.length
            and unit.phase != "decode"
        ]
        return max(known, default=None)

    def _write(self, unit: Unit, done: Done) -> None:
        line = done.answer
        if line is None:
            reason = f"{done.ended}, {TRIES} times"
            line = unit.asdict() | {
                "outcome": "failed", "reason": reason, "traceback": None, "found": None, "took": 0.0,
                "machine": self._machine, "device": self._plan["device"], "commit": commit_of(PACKAGE.parent),
                "versions": _versions(), "made_with": made_with(unit, self._system(unit.system)),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }  # fmt: skip
        self.folder.results.append(line)
        self._lines[unit.name] = line

    def _system(self, name: str) -> System:
        return self.systems[name]

    def _tell(self, waiting: Iterable[Unit], running: dict[str, Unit], until: float) -> None:
        waiting = [*waiting, *running.values()]
        estimates, slots = self._plan["estimates"], self._engine.slots
        left = sum(
            self._plan["a_cost"] if unit.alone else estimates.get(f"{unit.system}/{unit.task}", 1.0) / slots
            for unit in waiting
        )
        # What is on its way is half done, more or less.
        left = min(left * (1 - 0.5 * len(running) / max(len(waiting), 1)), max(until - monotonic(), 0.0))
        done = len(self._lines)
        self.progress(Tick(done, done + len(waiting), tuple(running), left))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch_version(), "regardant": __version__}
