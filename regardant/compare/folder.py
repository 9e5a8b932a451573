"""The folder of a comparison: its plan, its results, and what is only there while it is on its way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regardant.compare.findings import PLAN, REPORT, RESULTS
from regardant.compare.journal import Journal, write_whole
from regardant.compare.planning import Asked
from regardant.core.errors import require

WORK = "work"
"""Checkpoints of models on their way, and what the workers had to say."""


class Folder:
    """The files of one comparison. A result is there whole or not at all, whenever the process is killed.

    What a `fresh` one finds there goes when its own plan is kept, and not before: a question that turns out
    to be wrong costs nothing.
    """

    def __init__(self, path: Path, *, fresh: bool = False):
        require(
            not path.exists() or path.is_dir(), f"out is {path}, which is a file, but it must be a folder"
        )
        self.path, self._fresh = path, fresh
        self.results = Journal(path / RESULTS)

    def plan(self, asked: Asked) -> dict[str, Any] | None:
        """The plan that is there; refuses one of another comparison. None to begin with."""
        path = self.path / PLAN
        if self._fresh or not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        now, then = asked.asdict(), found["asked"]
        other = [name for name in now if now[name] != then.get(name)]
        require(
            not other,
            f"out is {self.path}, which holds another comparison: "
            + ", ".join(
                f"{name} is {_spell(then.get(name))} there and {_spell(now[name])} here" for name in other
            )
            + "; name another folder, or begin again with --fresh",
        )
        return found

    def keep_plan(self, plan: Mapping[str, Any]) -> None:
        if self._fresh:
            self._clear()
        write_whole(self.path / PLAN, json.dumps(plan, indent=1) + "\n")

    def _clear(self) -> None:
        """All but the log, which is being written."""
        for name in (PLAN, RESULTS, REPORT):
            (self.path / name).unlink(missing_ok=True)
        for path in (self.path / WORK).glob("*.safetensors"):
            path.unlink()

    def checkpoint(self, unit: str) -> Path:
        return self.path / WORK / f"{unit.replace('/', '.').replace(':', '.')}.safetensors"

    @property
    def log(self) -> Path:
        return self.path / WORK / "log"


def _spell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "the default"
    return "chosen by the plan" if value is None else str(value)
