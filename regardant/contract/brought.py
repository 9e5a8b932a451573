"""Systems that bring their own examples: networks, tasks, and what has known answers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regardant.backbone.kit.backbone import Backbone
from regardant.core.errors import require
from regardant.core.network import Network
from regardant.edit.edit import Edit

FOLDERS = {
    "structure": "network",
    "backbone": "network",
    "task": "task",
    "edit": "edit",
    "lens": "known answers",
    "train": "known answers",
    "parallel": "known answers",
}
"""The folders whose systems are held to these suites, and the suite of each."""
BROUGHT = tuple(dict.fromkeys(FOLDERS.values()))

_TASK = ("batch", "validation", "loss", "metric", "perfect")


@dataclass(frozen=True)
class Brought:
    """A class, and arguments of its constructor."""

    name: str
    kind: str
    """network, backbone (a network on images), task or known answers."""
    maker: type
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exempt(self) -> Mapping[str, str]:
        return getattr(self.maker, "exempt", {})


def brought(obj: Any, label: str, kind: str | None, config: Mapping[str, Any]) -> Brought | None:
    """The subject, where `obj` is such a class; None where it is something else."""
    kind = FOLDERS.get(kind, kind)
    if not inspect.isclass(obj):
        require(
            kind not in BROUGHT,
            f"{label} is a {type(obj).__name__}, but the suite {kind!r} checks a class",
        )
        return None
    fits = {
        "network": issubclass(obj, Network),
        "task": all(hasattr(obj, name) for name in _TASK),
        "edit": issubclass(obj, Edit),
        "known answers": hasattr(obj, "known_answers"),
    }
    needs = {
        "network": "is no regardant.core.network.Network",
        "task": f"lacks {', '.join(name for name in _TASK if not hasattr(obj, name))}",
        "edit": "is no regardant.edit.edit.Edit",
        "known answers": "has no classmethod known_answers",
    }
    if kind in BROUGHT:
        require(fits[kind], f"{label} {needs[kind]}, so the suite {kind!r} cannot be run on it")
        found = kind
    else:
        found = next((each for each, fit in fits.items() if fit), None) if kind is None else None
    if found is None:
        return None
    require(
        found == "task" or not config,
        f"config has {', '.join(config)}, but {label} brings its own configurations",
    )
    if found == "network" and issubclass(obj, Backbone):
        found = "backbone"
    return Brought(label, found, obj, dict(config))
