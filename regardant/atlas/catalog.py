"""Everything by name: the cards, the systems that they provide, and `create`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from regardant.atlas.card import Card, System, read
from regardant.core.errors import require, unknown

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package. Every function here takes another one, so that it can be tried out."""

KINDS = (
    "sequence",
    "grid",
    "gate",
    "backbone",
    "fusion",
    "structure",
    "train",
    "edit",
    "lens",
    "task",
    "parallel",
)
"""The folders that systems live in; a system's kind is its folder."""

BASELINE = "baseline"


def cards(*, package: Path = PACKAGE) -> list[Card]:
    """Every card: the papers by slug, then the baselines."""
    return [
        read(path)
        for folder in ("cards", "baselines")
        for path in sorted((package / "atlas" / folder).glob("*.toml"))
    ]


def systems(*, package: Path = PACKAGE) -> dict[str, System]:
    """Every system by its name. Two cards that claim one name are an error."""
    found: dict[str, System] = {}
    for each in cards(package=package):
        for system in each.systems:
            rival = found.setdefault(system.name, system)
            require(
                rival is system,
                f"the cards {rival.slug!r} and {system.slug!r} both provide {system.name!r}; "
                "a system's name must be its own",
            )
    return found


def variants(*, package: Path = PACKAGE) -> dict[str, System]:
    """Every named variant of a system (`maxvit_tiny`), with the system that makes it."""
    everything, found = systems(package=package), {}
    for each in cards(package=package):
        for name, system in each.variants.items():
            rival = everything.get(name) or found.get(name)
            require(
                rival is None,
                f"the card {each.slug!r} has the variant {name!r}, but the card {rival and rival.slug!r} "
                "has that name too",
            )
            found[name] = everything[system]
    return found


def names(kind: str | None = None, *, package: Path = PACKAGE) -> list[str]:
    """The systems' names, sorted: all, those of a folder (`"grid"`), or the `"baseline"`s.

    A card's kind that is no folder (`"vision"`) gives the systems of those cards.
    """
    everything = systems(package=package)
    if kind is None:
        return sorted(everything)
    if kind in KINDS:
        return sorted(name for name, system in everything.items() if system.kind == kind)
    deck = {each.slug: each for each in cards(package=package)}
    check_kind(kind, package=package)
    return sorted(name for name, system in everything.items() if deck[system.slug].kind == kind)


def check_kind(kind: str, *, package: Path = PACKAGE) -> None:
    """Raise a `ValueError` that names the kinds unless `kind` is one of them."""
    kinds = [*KINDS, *sorted({each.kind for each in cards(package=package)} - set(KINDS))]
    require(kind in kinds, f"no kind is called {kind!r}; the kinds are {', '.join(kinds)}")


def card(name: str, *, package: Path = PACKAGE) -> Card:
    """The card with this slug, or the one that provides the system of this name."""
    for folder in ("cards", "baselines"):
        path = package / "atlas" / folder / f"{name}.toml"
        # A name with a separator in it must not leave the folder.
        if path.name == f"{name}.toml" and path.is_file():
            return read(path)
    deck = cards(package=package)
    for each in deck:
        if name in each.provides or name in each.variants:
            return each
    known = {each.slug for each in deck} | set(systems(package=package)) | set(variants(package=package))
    raise unknown("card or system", name, known)


def system(name: str, *, package: Path = PACKAGE) -> System:
    """The system of this name or variant; a slug whose card gave no system, or several, is told so."""
    everything = systems(package=package)
    if name in everything:
        return everything[name]
    deck = {each.slug: each for each in cards(package=package)}
    named = variants(package=package)
    if name in named:
        return named[name]
    if name not in deck:
        raise unknown("system", name, everything.keys() | deck.keys() | named.keys())
    given = ", ".join(deck[name].provides)
    require(not given, f"{name!r} is a card with several systems: {given}; create one of these")
    raise ValueError(f"{name!r} is a card that has no system yet; `regardant show {name}` says what it is")


def resolve(name: str, *, package: Path = PACKAGE) -> Callable[..., Any]:
    """The class of this system, imported now."""
    found = system(name, package=package)
    module = import_module(found.module)
    require(
        hasattr(module, found.attribute),
        f"{name!r} should be {found.target}, but {found.module} has no {found.attribute}",
    )
    return getattr(module, found.attribute)


def create(name: str, **config: Any) -> Any:
    """A system by its name, `create("moh", dim=512, heads=8)`, or a variant of one, `create("maxvit_tiny")`.

    What is given beside a variant's name goes before what the variant says.
    """
    constructor = resolve(name)
    if name in variants():
        config = constructor.variant(name) | config
    bind(name, constructor, config)
    return constructor(**config)


def bind(name: str, constructor: Callable[..., Any], config: Mapping[str, Any]) -> None:
    """Raise one sentence unless `constructor` takes all of `config` and needs nothing else."""
    accepted, anything = keywords(constructor)
    for key in config:
        if key in accepted or anything:
            continue
        close = get_close_matches(key, accepted, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(close)}" if close else f"it takes {', '.join(accepted)}"
        raise ValueError(f"{name!r} takes no {key!r} (given {config[key]!r}); {hint}")
    missing = [key for key, given in accepted.items() if given.default is given.empty and key not in config]
    require(
        not missing,
        f"{name!r} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not given",
    )


def keywords(constructor: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The keywords that a constructor takes, and whether it takes any other as well.

    Where a class passes its `**shared` on, those of the classes behind it count too.
    """
    accepted: dict[str, inspect.Parameter] = {}
    for function, own in _initializers(constructor):
        parameters = list(inspect.signature(function).parameters.values())[own:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                accepted.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return accepted, False
    return accepted, True


def _initializers(constructor: Callable[..., Any]) -> list[tuple[Callable[..., Any], int]]:
    """The functions that take a constructor's arguments, nearest first, and how many to skip (`self`)."""
    if not inspect.isclass(constructor):
        return [(constructor, 0)]
    behind = [each for each in inspect.getmro(constructor) if each is not object]
    return [(each.__init__, 1) for each in behind if "__init__" in vars(each)]
