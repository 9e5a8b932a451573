"""Running the experiment behind a card's claim, and putting what it found on file.

run("moh")                       # three seeds; goes on where a killed run was
run("moh", seeds=(0,), scale=0.01, record=False)   # a try-out
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from regardant.atlas import record as evidence
from regardant.atlas import source
from regardant.atlas.card import Card
from regardant.atlas.catalog import PACKAGE, cards
from regardant.atlas.catalog import card as find
from regardant.claim import machine
from regardant.claim.context import Context, Report
from regardant.claim.outcome import Outcome
from regardant.claim.work import Work
from regardant.core.errors import require

WORK = Path(".regardant") / "claim"
"""Where units lie while an experiment is on its way, under the current folder."""

SHARED = ("core", "train", "task")
"""Folders that every experiment stands on: a unit that was measured with other code is void."""


@dataclass(frozen=True)
class Claimed:
    """A finished experiment: its outcome, what goes on file with it, and where it was put."""

    slug: str
    paper: str
    outcome: Outcome
    evidence: dict[str, Any]
    path: Path | None


def run(
    slug: str, *, seeds: Sequence[int] = (0, 1, 2), out: Path | None = None, progress: Report | None = None,
    record: bool = True, fresh: bool = False, scale: float = 1.0, package: Path = PACKAGE,
) -> Claimed:  # fmt: skip
    """Run a card's experiment. Its units lie in the folder `out`/slug; `fresh` forgets those that are there.

    `scale` shortens every training, to try an experiment out; its outcome means nothing and is not
    recorded.
    """
    card = find(slug, package=package)
    require(0 < scale <= 1, f"scale is {scale}, but it is a share of the full training: above 0, at most 1")
    require(
        scale == 1 or not record,
        f"scale is {scale}: a shortened experiment is a try-out, which must not be recorded (--no-record)",
    )
    require(
        len(seeds) >= 1 and len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds),
        f"seeds is {tuple(seeds)}, but they are different whole numbers from 0 on",
    )
    module = experiment_of(card, package=package)
    fingerprints = fingerprints_of(card, module, package=package)
    versions, hardware = machine.versions(), machine.hardware()
    work = Work(
        # A try-out must not stand where the units of a full run lie.
        folder=(WORK if out is None else out) / (card.slug if scale == 1 else f"{card.slug}.try"),
        made_with={
            "code": fingerprints,
            "shared code": _shared_fingerprint(package=package),
            "torch": versions["torch"],
            "python": versions["python"],
            "scale": scale,
        },
    )
    if fresh:
        work.clear()
    context = Context(seeds=seeds, work=work, scale=scale, report=progress)
    outcome = import_module(module).claim(context)
    require(
        isinstance(outcome, Outcome),
        f"{module}.claim returned {type(outcome).__name__}, but an experiment returns an Outcome",
    )
    data = outcome.as_json() | {
        "paper": card.claim,
        "seeds": list(seeds),
        "fingerprint": fingerprints,
        "versions": versions,
        "hardware": hardware,
        "seconds": round(context.seconds, 1),
        "date": datetime.now(UTC).date().isoformat(),
    }
    path = evidence.record_claim(card.slug, data, package=package) if record else None
    return Claimed(slug=card.slug, paper=card.claim, outcome=outcome, evidence=data, path=path)


def module_of(slug: str) -> str:
    """The module of a card's experiment."""
    name = slug.replace("-", "_")
    return f"regardant.claim.{name if name.isidentifier() else f'paper_{name}'}"


def experiment_of(card: Card, *, package: Path = PACKAGE) -> str:
    """The module of a card's experiment; a sentence where there is none."""
    module = module_of(card.slug)
    if _has(card.slug, package):
        return module
    have = [each.slug for each in cards(package=package) if _has(each.slug, package)]
    raise ValueError(
        f"{card.slug!r} has no experiment yet ({module.replace('.', '/')}.py with a `claim`); "
        f"those that have one are {', '.join(have) or 'none'}"
    )


def _has(slug: str, package: Path) -> bool:
    module = module_of(slug)
    return source.locate(module, package=package) is not None and source.defines(
        module, "claim", package=package
    )


def fingerprints_of(card: Card, module: str, *, package: Path = PACKAGE) -> dict[str, str]:
    """Of the experiment and of every system that the card provides: what ties evidence to a version."""
    modules = sorted({module, *(system.module for system in card.systems)})
    for each in modules:
        require(
            source.locate(each, package=package) is not None,
            f"{card.slug!r} provides a system of {each}, which does not exist",
        )
    return {each: source.fingerprint(each, package=package) for each in modules}


def _shared_fingerprint(*, package: Path) -> str:
    """One for all the code that experiments share."""
    modules = [
        f"regardant.{folder}.{path.stem}"
        for folder in SHARED
        for path in sorted((package / folder).glob("*.py"))
        if path.stem != "__init__"
    ]
    each = "\n".join(f"{module} {source.fingerprint(module, package=package)}" for module in modules)
    return hashlib.sha256(each.encode()).hexdigest()[:16]
