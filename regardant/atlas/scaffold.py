"""The three files of a new paper: its card, its system, its experiment. Nothing is overwritten."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from regardant.atlas import card as card_file
from regardant.atlas.card import Card
from regardant.atlas.catalog import PACKAGE, systems
from regardant.atlas.skeleton import claim_text, system_text
from regardant.core.errors import require


@dataclass(frozen=True)
class Scaffold:
    """What was written."""

    slug: str
    target: str
    card: Path
    system: Path
    claim: Path
    new_card: bool


def scaffold(
    slug: str,
    *,
    kind: str = "sequence",
    name: str | None = None,
    title: str | None = None,
    arxiv: str | None = None,
    package: Path = PACKAGE,
) -> Scaffold:
    """Write the skeletons of a paper: a system of this kind, of class `name`, and its experiment.

    The card is amended where there is one, and otherwise made from `title` and `arxiv`.
    """
    require(
        re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) is not None,
        f"slug is {slug!r}, but a slug is small letters and digits with single hyphens between",
    )
    module = slug.replace("-", "_") if not slug[0].isdigit() else f"paper_{slug.replace('-', '_')}"
    name = "".join(part.capitalize() for part in module.split("_")) if name is None else name
    require(name.isidentifier(), f"class is {name!r}, but a class needs a name that Python can read")

    path = package / "atlas" / "cards" / f"{slug}.toml"
    known = path.is_file()
    require(
        not known or (title is None and arxiv is None),
        f"title and arxiv are for a new card, but {path} is there already: change them in it",
    )
    card = card_file.read(path) if known else _blank(slug, kind=kind, title=title, arxiv=arxiv)
    target = f"regardant.{kind}.{module}:{name}"
    files = {
        package / kind / f"{module}.py": system_text(kind, name=name, title=card.title, arxiv=card.arxiv),
        package / "claim" / f"{module}.py": claim_text(slug, title=card.title, claim=card.claim),
    }
    for taken in files:
        require(not taken.exists(), f"{taken} is there already; nothing was written")
    rival = systems(package=package).get(slug)
    require(
        rival is None or rival.target == target,
        f"the card {'' if rival is None else rival.slug!r} already provides {slug!r} as "
        f"{'' if rival is None else rival.target}; nothing was written",
    )
    text = path.read_text(encoding="utf-8") if known else card_file.write(card)
    if rival is None:
        text = card_file.provide(text, slug, target)
    _write(files, path, text)
    system, claim = files
    return Scaffold(slug=slug, target=target, card=path, system=system, claim=claim, new_card=not known)


def _blank(slug: str, *, kind: str, title: str | None, arxiv: str | None) -> Card:
    """A card with the facts that are known; its summary, tags and claim are still to be written."""
    written = re.match(r"(\d\d)\d\d\.", arxiv or "")
    return Card(
        slug=slug,
        title=title or slug.replace("-", " ").capitalize(),
        arxiv=arxiv or "",
        year=2000 + int(written[1]) if written else date.today().year,
        code="",
        kind="gate" if kind == "gate" else "mixer",
        fidelity="paper",
        summary="",
        claim="",
    )


def _write(files: dict[Path, str], card: Path, text: str) -> None:
    """All of the files or none; the card, which makes them count, comes last and at one stroke."""
    written: list[Path] = []
    draft = card.with_suffix(".toml.new")
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8", newline="\n") as file:
                written.append(path)
                file.write(content)
        card.parent.mkdir(parents=True, exist_ok=True)
        written.append(draft)
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, card)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
