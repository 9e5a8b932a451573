"""Results beside the scripts: one JSON file for a script and a machine, rewritten whole after each row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from bench.quiet import ENOUGH, Quiet
from regardant.compare.journal import write_whole
from regardant.compare.machine import machine, versions

FOLDER = Path(__file__).resolve().parent / "results"


class Results:
    """Rows by name. A row of other code, or measured while the machine was busy, counts as missing."""

    def __init__(
        self, script: str, *packages: str, folder: Path = FOLDER, fresh: bool = False, device: str = "cpu"
    ):
        where = machine(device)
        slug = re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
        self.path = folder / f"{script}-{slug}.json"
        self.about = {"machine": where, "versions": versions(*packages)}
        self.rows: dict[str, dict[str, Any]] = {}
        kept = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        if not fresh:
            self.rows = kept.get("rows", {})
        self.quiet = Quiet(kept.get("probe", inf))

    def has(self, name: str, code: str) -> bool:
        row = self.rows.get(name, {})
        return row.get("code") == code and row.get("quiet", 0) >= ENOUGH

    def put(self, name: str, row: Mapping[str, Any]) -> None:
        self.rows[name] = dict(row)
        rows = dict(sorted(self.rows.items()))
        found = {**self.about, "probe": self.quiet.best, "rows": rows}
        write_whole(self.path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")

    def write_beside(self, text: str) -> Path:
        path = self.path.with_suffix(".md")
        write_whole(path, text)
        return path
