"""A card: the facts of one paper, and which systems it gave. One TOML file a card."""

from __future__ import annotations

import json
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from regardant.atlas.figures import PaperFigures
from regardant.core.errors import require

FIDELITIES = ("official", "paper", "reading")
FACTS = ("slug", "title", "arxiv", "year", "code", "kind", "fidelity")
WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class System:
    """A class that a card provides: its name for `create`, and where it is written."""

    name: str
    slug: str
    target: str
    """`package.module:Class`."""

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def attribute(self) -> str:
        return self.target.partition(":")[2]

    @property
    def kind(self) -> str:
        """The folder that the system lives in: sequence, grid, gate, …"""
        return self.module.split(".")[1]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One paper (or, of kind `baseline`, one yardstick).

    `fidelity` is `official` (numerically equal to the official code), `paper` (from the paper's
    equations) or `reading` (the source was not available in full: our reading of it).
    """

    slug: str
    title: str
    arxiv: str
    year: int
    code: str
    """`owner/repository` of the official code, empty where there is none."""
    kind: str
    fidelity: str
    summary: str
    claim: str
    tags: tuple[str, ...] = ()
    provides: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    """The paper's models by name, each with the system that makes it: `maxvit_tiny` → `maxvit`."""
    figures: Mapping[str, PaperFigures] = field(default_factory=dict)
    """What the paper says that its models take, for those of which it says so."""

    @property
    def systems(self) -> tuple[System, ...]:
        return tuple(System(name=name, slug=self.slug, target=at) for name, at in self.provides.items())

    @property
    def arxiv_url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def code_url(self) -> str:
        return f"https://github.com/{self.code}" if self.code else ""


def read(path: Path) -> Card:
    """The card in this file. A file is parsed again only when it has changed."""
    facts = path.stat()
    return _read(path, facts.st_mtime_ns, facts.st_size)


@cache
def _read(path: Path, _changed: int, _size: int) -> Card:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the card {path} is not valid TOML: {error}") from error
    missing = [name for name in (*FACTS, "summary") if name not in data]
    require(not missing, f"the card {path} lacks {', '.join(missing)}")
    require(
        data["slug"] == path.stem,
        f"the card {path} says slug = {data['slug']!r}, but its file name says {path.stem!r}",
    )
    require(
        data["fidelity"] in FIDELITIES,
        f"the card {path} says fidelity = {data['fidelity']!r}; one of {', '.join(FIDELITIES)} is right",
    )
    provides = data.get("provides", {})
    for name, target in provides.items():
        module, _, attribute = str(target).partition(":")
        require(
            module.count(".") >= 2 and module.startswith("regardant.") and attribute.isidentifier(),
            f"the card {path} provides {name!r} = {target!r}, which is not of the form "
            "'regardant.folder.module:Class'",
        )
    variants = data.get("variants", {})
    for name, system in variants.items():
        require(
            system in provides,
            f"the card {path} has the variant {name!r} of {system!r}, which it does not provide",
        )
    figures = {}
    for name, entry in data.get("figures", {}).items():
        require(name in variants, f"the card {path} has figures of {name!r}, which is none of its variants")
        figures[name] = PaperFigures.of(entry)
    return Card(
        **{name: data[name] for name in FACTS},
        summary=" ".join(data["summary"].split()),
        claim=" ".join(data.get("claim", {}).get("text", "").split()),
        tags=tuple(data.get("tags", ())),
        provides=provides,
        variants=variants,
        figures=figures,
    )


def write(card: Card) -> str:
    """The card as TOML, the same text for the same card always. `read` gives the card back."""
    lines = [f"{name} = {_text(getattr(card, name))}" for name in FACTS]
    lines.append(_list("tags", card.tags))
    lines.append(_prose("summary", card.summary))
    if card.provides:
        lines += ["", "[provides]"]
        lines += [f"{_text(name)} = {_text(target)}" for name, target in card.provides.items()]
    if card.variants:
        lines += ["", "[variants]"]
        lines += [f"{_text(name)} = {_text(system)}" for name, system in card.variants.items()]
    if card.figures:
        lines += ["", "[figures]"]
        lines += [f"{_text(name)} = {_table(each.as_entry())}" for name, each in card.figures.items()]
    lines += ["", "[claim]", _prose("text", card.claim)]
    return "\n".join(lines) + "\n"


def provide(text: str, name: str, target: str) -> str:
    """The text of a card with one more system in it; every other line, comments too, stays as it is."""
    entry = f"{_text(name)} = {_text(target)}"
    lines = text.rstrip("\n").split("\n")
    if "[provides]" in lines:
        lines.insert(lines.index("[provides]") + 1, entry)
    elif "[claim]" in lines:
        at = lines.index("[claim]")
        lines[at:at] = ["[provides]", entry, ""]
    else:
        lines += ["", "[provides]", entry]
    return "\n".join(lines) + "\n"


def _text(value: str | int | bool) -> str:
    # A JSON string is a TOML basic string, except that TOML forbids a bare DEL.
    if isinstance(value, int):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _table(entry: Mapping[str, str | int | bool]) -> str:
    return "{ " + ", ".join(f"{name} = {_text(value)}" for name, value in entry.items()) + " }"


def _list(name: str, values: tuple[str, ...]) -> str:
    line = f"{name} = [{', '.join(map(_text, values))}]"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name} = [", *(f"    {_text(value)}," for value in values), "]"])


def _prose(name: str, text: str) -> str:
    """A paragraph as a multi-line string: wrapped, each line ending in a backslash but the last."""
    line = f"{name} = {_text(text)}"
    if len(line) <= WIDTH:
        return line
    escaped = _text(text)[1:-1]
    wrapped = textwrap.wrap(escaped, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return f'{name} = """\\\n' + " \\\n".join(wrapped) + '"""'
