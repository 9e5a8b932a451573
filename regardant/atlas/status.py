"""How far a card is: computed from the source and the evidence, never typed.

`card` (facts only) → `built` (every system is there and its contract suite passed on this version)
→ `checked` (the claim's evidence is on file for this version).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regardant.atlas import record, source
from regardant.atlas.card import Card
from regardant.atlas.catalog import PACKAGE
from regardant.atlas.skeleton import is_skeleton

STATES = ("card", "built", "checked")


@dataclass(frozen=True)
class Status:
    """A card's state, and what it lacks for the next one (nothing when it is checked)."""

    state: str
    reasons: tuple[str, ...] = ()


def status(card: Card, *, package: Path = PACKAGE) -> Status:
    if not card.provides:
        return Status("card", ("no system yet",))
    evidence = record.read(card.slug, package=package)
    if missing := tuple(_unbuilt(card, evidence.get("contract", {}), package)):
        return Status("card", missing)
    if missing := tuple(_unchecked(card, evidence.get("claim", {}), package)):
        return Status("built", missing)
    return Status("checked")


def _unbuilt(card: Card, verdicts: dict[str, dict], package: Path) -> Iterator[str]:
    for system in card.systems:
        if source.locate(system.module, package=package) is None:
            yield f"{system.module} does not exist"
        elif not source.defines(system.module, system.attribute, package=package):
            yield f"{system.module} does not define {system.attribute}"
        elif system.name not in verdicts:
            yield f"the contract of {system.name} has no verdict on file"
        elif verdicts[system.name].get("fingerprint") != source.fingerprint(system.module, package=package):
            yield f"the contract's verdict on {system.name} is for an earlier version of {system.module}"
        elif verdicts[system.name].get("passed") is not True:
            yield f"{system.name} does not pass its contract"
        elif is_skeleton(
            system.kind, name=system.attribute, fingerprint=source.fingerprint(system.module, package=package)
        ):
            yield f"{system.module} is still the skeleton that `regardant new` wrote"


def _unchecked(card: Card, claim: dict, package: Path) -> Iterator[str]:
    if not claim:
        yield "the claim has no evidence on file"
        return
    on_file = claim.get("fingerprint", {})
    for module in sorted({system.module for system in card.systems} | set(on_file)):
        if module not in on_file:
            yield f"the claim's evidence does not cover {module}"
        elif source.locate(module, package=package) is None:
            yield f"the claim's evidence is for {module}, which does not exist any more"
        elif on_file[module] != source.fingerprint(module, package=package):
            yield f"the claim's evidence is for an earlier version of {module}"
