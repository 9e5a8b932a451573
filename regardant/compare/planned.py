"""What a comparison set out to measure, as `plan.json` has it: plain data, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

BASELINE = "softmax"
"""Always run beside: fused softmax attention."""


@dataclass(frozen=True)
class System:
    """What is compared: a mixer by its name, or several by turns in the layers ("a+b")."""

    name: str
    kind: str
    """sequence or grid."""
    parts: tuple[str, ...]
    """The names of the mixers, each of which has a card or is `module:Class`; one, unless it is a layout."""
    specs: tuple[str, ...] = ()
    """The same with their options, as `sliding-window@window=16` (`spec.py`)."""


@dataclass(frozen=True)
class TaskPlan:
    """A task as it is trained here."""

    name: str
    title: str
    measure: str
    """What the value is: "accuracy", "nats a byte"."""
    higher_is_better: bool
    steps: int
    batch: int
    length: int
    """Tokens of a training sample."""
    parameters: int
    """That every model has, to 2 %."""
    chance: float | None
    """The value of a guess, where it is known."""
    about: str
    """The setting in a sentence."""
    kind: str = "sequence"


@dataclass(frozen=True)
class Plan:
    """What was chosen to be measured, and what was left out and why."""

    asked: Mapping[str, Any]
    """The options of the command."""
    systems: tuple[System, ...]
    tasks: tuple[TaskPlan, ...]
    lengths: tuple[int, ...]
    positions: tuple[int, ...]
    dim: int
    heads: int
    layers: int
    seeds: tuple[int, ...]
    device: str
    budget: float
    """Seconds."""
    left_out: tuple[str, ...]
    """Sentences."""
    level: str = "small"
    """The size of the tasks: small, medium or large."""
    without: tuple[str, ...] = ()
    """The systems whose models take too long to be trained."""


def read_plan(data: Mapping[str, Any]) -> Plan:
    """The plan in `plan.json`; what else stands there is passed over."""
    given = {field.name: data[field.name] for field in fields(Plan) if field.name in data}
    return Plan(
        **given
        | {
            "systems": tuple(
                System(
                    each["name"],
                    each["kind"],
                    tuple(each["parts"]),
                    tuple(each.get("specs") or each["parts"]),
                )
                for each in given["systems"]
            ),
            "tasks": tuple(TaskPlan(**each) for each in given["tasks"]),
        }
        | {
            name: tuple(given[name])
            for name in ("lengths", "positions", "seeds", "left_out", "without")
            if name in given
        }
    )
