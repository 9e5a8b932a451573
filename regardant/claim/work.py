"""Finished units of an experiment, one JSON file each: a run that was killed goes on where it was.

A unit is one variant with one seed. Its file says what it was measured with (fingerprints of the
code, versions, scale); a unit that was measured with anything else is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from regardant.core.errors import require

Values = dict[str, float]


@dataclass(frozen=True)
class Finished:
    values: Values
    seconds: float


@dataclass(frozen=True)
class Work:
    """The folder of one experiment's units. `made_with` is what they must have been measured with."""

    folder: Path
    made_with: Mapping[str, Any]

    def read(self, variant: str, seed: int) -> Finished | None:
        """The unit, where it is finished and was measured with the same code."""
        path = self._path(variant, seed)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            values = {name: float(value) for name, value in data["values"].items()}
            found = Finished(values, float(data["seconds"]))
            same = data["made_with"] == dict(self.made_with)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"the unit {path} cannot be read ({error}); delete it, or begin again with --fresh"
            ) from error
        return found if same else None

    def write(self, variant: str, seed: int, finished: Finished) -> None:
        """Whoever reads the file sees nothing or all of it, also after a crash."""
        path = self._path(variant, seed)
        data = {
            "variant": variant,
            "seed": seed,
            # JSON has no NaN and no infinity, but float() reads their names.
            "values": {
                name: value if isfinite(value) else str(value) for name, value in finished.values.items()
            },
            "seconds": finished.seconds,
            "made_with": dict(self.made_with),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=".unit-", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                json.dump(data, file, indent=2, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def checkpoint(self, variant: str, seed: int, index: int = 0) -> Path:
        """Where the training number `index` of this unit keeps its weights while it runs.

        The name holds a hash of `made_with`: a training never goes on from other code's weights.
        """
        made_with = json.dumps(dict(self.made_with), sort_keys=True)
        digest = hashlib.sha256(made_with.encode()).hexdigest()[:8]
        return self._path(variant, seed).with_suffix(f".{index}.{digest}.safetensors")

    def drop_checkpoints(self, variant: str, seed: int) -> None:
        """When a unit is finished, nothing goes on from its checkpoints."""
        for path in self.folder.glob(self._path(variant, seed).with_suffix(".*.safetensors").name):
            path.unlink()

    def clear(self) -> None:
        """Forget every unit and checkpoint of this experiment; other files in its folder stay."""
        for pattern in ("*.seed-*.json", "*.seed-*.safetensors", ".*.tmp"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _path(self, variant: str, seed: int) -> Path:
        require(
            re.fullmatch(r"[a-z0-9][a-z0-9 .+-]*", variant) is not None,
            f"variant is {variant!r}, but it names a file: small letters, digits, "
            "spaces, dots, hyphens and plus signs",
        )
        return self.folder / f"{variant.replace(' ', '-')}.seed-{seed}.json"
