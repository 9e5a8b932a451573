"""What a measurement was made with: its line counts for this code alone. Torch is not imported."""

from __future__ import annotations

import sys
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from regardant.atlas import catalog, source
from regardant.compare.findings import System
from regardant.compare.hardware import torch_version
from regardant.compare.unit import Unit

MEASURING = {
    "cost": (
        "core/*", "compare/clock", "compare/costing", "compare/decoding", "compare/peak", "compare/workload",
    ),
    "quality": (
        "core/*", "train/fit", "train/model", "train/checkpoint", "task/*", "compare/trials",
        "compare/lesson", "compare/small_model", "compare/training", "compare/curves", "compare/maps",
        "compare/look_ahead",
    ),
    "probe": ("core/*", "contract/*"),
}  # fmt: skip
"""The files that a measurement of each sort stands on, beside the system's own."""


def made_with(unit: Unit, system: System) -> str:
    """Sixteen hexadecimal digits: of the system's code, of what measures it, and of torch's version."""
    parts = "".join(_code_of(part) for part in system.parts) + "".join(system.specs)
    return sha256(f"{parts} {_shared(unit.what)} {torch_version()}".encode()).hexdigest()[:16]


@cache
def _shared(what: str) -> str:
    paths = [path for pattern in MEASURING[what] for path in sorted(catalog.PACKAGE.glob(f"{pattern}.py"))]
    modules = [
        ".".join(("regardant", *path.relative_to(catalog.PACKAGE).with_suffix("").parts)) for path in paths
    ]
    return "".join(source.fingerprint(module) for module in modules if not module.endswith("__init__"))


@cache
def _code_of(name: str) -> str:
    if ":" not in name:
        return source.fingerprint(catalog.system(name).module)
    module = name.partition(":")[0]
    loaded = sys.modules.get(module)
    path = loaded.__file__ if loaded is not None else find_spec(module).origin
    return sha256(Path(path).read_bytes()).hexdigest()[:16]
