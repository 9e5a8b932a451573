"""Evidence: what was measured about a card's systems, one JSON file a card, written atomically.

{"contract": {system: {"fingerprint", "passed", "properties", "versions", "date"}},
 "claim": {"fingerprint": {module: fingerprint}, "verdict", …}}
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regardant.atlas.catalog import PACKAGE


def locate(slug: str, *, package: Path = PACKAGE) -> Path:
    return package / "atlas" / "evidence" / f"{slug}.json"


def read(slug: str, *, package: Path = PACKAGE) -> dict[str, Any]:
    """The evidence on a card; empty where there is none."""
    path = locate(slug, package=package)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"the evidence {path} is not valid JSON ({error}); restore or delete it") from error
    shape = isinstance(data, dict) and all(
        isinstance(data.get(part, {}), dict) for part in ("contract", "claim")
    )
    if not shape or not all(isinstance(entry, dict) for entry in data.get("contract", {}).values()):
        raise ValueError(f"the evidence {path} is not an object of objects; restore or delete it")
    return data


def record_contract(slug: str, system: str, verdict: Mapping[str, Any], *, package: Path = PACKAGE) -> Path:
    """Put the contract's verdict on one system on file; the rest of the evidence stays as it is."""
    data = read(slug, package=package)
    data["contract"] = {**data.get("contract", {}), system: dict(verdict)}
    return _write(locate(slug, package=package), data)


def record_claim(slug: str, outcome: Mapping[str, Any], *, package: Path = PACKAGE) -> Path:
    """Put a claim's outcome on file; the contract's verdicts stay as they are."""
    data = read(slug, package=package)
    data["claim"] = dict(outcome)
    return _write(locate(slug, package=package), data)


def _write(path: Path, data: Mapping[str, Any]) -> Path:
    """Whoever reads `path` sees the old text or the new one, whole, also after a crash."""
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes a file for its owner's eyes only.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
