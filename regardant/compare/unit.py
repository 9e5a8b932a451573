"""The measurements of a comparison, one by one: what is done at once, and becomes one line of the results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from regardant.compare.findings import PHASES, Plan


@dataclass(frozen=True)
class Unit:
    """A cost (of a phase at a length), a model (of a task with a seed), or a closer look at a system."""

    what: str
    """cost, quality or probe."""
    system: str
    phase: str | None = None
    length: int | None = None
    task: str | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        rest = {
            "cost": f"/{self.phase}/{self.length}",
            "quality": f"/{self.task}/{self.seed}",
            "probe": f"/{self.task}",
        }[self.what]
        return f"{self.what}/{self.system}{rest}"

    @property
    def alone(self) -> bool:
        """Whether nothing else may run meanwhile: what is timed."""
        return self.what == "cost"

    def asdict(self) -> dict[str, Any]:
        """What its line says of it."""
        return {"unit": self.name} | {
            name: value for name, value in asdict(self).items() if value is not None
        }


def units(plan: Plan) -> Iterator[Unit]:
    """All measurements of a plan, in the order in which they are made: costs at growing lengths, the systems
    side by side; then models, all systems and tasks with one seed before any with the next."""
    for length in plan.lengths:
        for phase in PHASES[:2]:
            for system in plan.systems:
                yield Unit("cost", system.name, phase, length)
    for position in plan.positions:
        for system in plan.systems:
            yield Unit("cost", system.name, "decode", position)
    for seed in plan.seeds:
        for task in plan.tasks:
            for system in plan.systems:
                if system.name not in plan.without:
                    yield Unit("quality", system.name, task=task.name, seed=seed)


def probe(system: str, task: str) -> Unit:
    """Whether a system that is better than the baseline by far on a task looks ahead."""
    return Unit("probe", system, task=task)
