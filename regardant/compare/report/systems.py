"""The card of each system in a comparison: its paper, what that claims, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regardant.atlas import catalog, record, source
from regardant.atlas.status import status
from regardant.compare.findings import System
from regardant.compare.spec import Spec
from regardant.core.supports import Supports

VERDICTS = {"holds": "holds", "does not hold here": "fails", "cost only": "cost"}
"""A claim's verdict → the class that marks it."""


@dataclass(frozen=True)
class Criterion:
    rule: str
    found: str
    holds: bool


@dataclass(frozen=True)
class SystemCard:
    """What is said of a system, or of one part of a layout. Fields that have nothing to say are empty."""

    name: str
    title: str
    summary: str = ""
    claim: str = ""
    year: str = ""
    paper: str = ""
    code: str = ""
    fidelity: str = ""
    status: str = ""
    growth: tuple[tuple[str, str], ...] = ()
    """Time, memory and state with the exponents that the system declares."""
    verdict: str = ""
    mark: str = ""
    setting: str = ""
    criteria: tuple[Criterion, ...] = ()
    exempt: tuple[tuple[str, str], ...] = ()


FIDELITY = {
    "official": "numerically equal to the official code",
    "paper": "from the paper's equations",
    "reading": "our reading: the source was not available in full",
}


def cards(compared: Sequence[System]) -> dict[str, list[SystemCard]]:
    """By system the cards of its parts. A part of a layout that is compared by itself has its card there."""
    alone = {system.name for system in compared}
    return {
        system.name: [
            _card(part) for part in dict.fromkeys(system.parts) if part == system.name or part not in alone
        ]
        for system in compared
    }


def _card(part: str) -> SystemCard:
    name = Spec.of(part).name
    if ":" in name:
        return SystemCard(part, "A layer of your own", summary=f"It is imported from {name} and has no card.")
    card = catalog.card(name)
    target = catalog.system(name).target
    claim = record.read(card.slug).get("claim", {})
    declared = source.supports(target)
    verdict = str(claim.get("verdict", ""))
    return SystemCard(
        name=part,
        title=card.title,
        summary=card.summary,
        claim=card.claim,
        year=str(card.year),
        paper=card.arxiv_url,
        code=card.code_url,
        fidelity=FIDELITY[card.fidelity],
        status=status(card).state,
        growth=() if declared is None else _growth(declared),
        verdict=verdict,
        mark=VERDICTS.get(verdict, ""),
        setting=str(claim.get("setting", "")),
        criteria=tuple(map(_criterion, claim.get("criteria", ()))),
        exempt=tuple(source.exempt(target).items()),
    )


def _growth(declared: Supports) -> tuple[tuple[str, str], ...]:
    named = {"time": declared.time, "memory": declared.memory, "decoding state": declared.state}
    return tuple((name, f"{exponent:g}") for name, exponent in named.items())


def _criterion(given: Mapping[str, Any]) -> Criterion:
    # JSON has neither NaN nor infinity: such a figure is spelled, and read back here.
    found, bound = float(given["found"]), float(given["bound"])
    return Criterion(
        given["rule"], f"{found:.4g}, asked for {given['sense']} {bound:.4g}", bool(given["holds"])
    )
