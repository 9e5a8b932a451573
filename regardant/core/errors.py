"""Bad input is a `ValueError` of one sentence: the argument, its value, what would be right."""

from collections.abc import Iterable
from difflib import get_close_matches


def require(condition: bool, sentence: str) -> None:
    """Raise `ValueError(sentence)` unless `condition` holds."""
    if not condition:
        raise ValueError(sentence)


def unknown(noun: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that nobody has, with the nearest names that somebody has."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"; the nearest are {', '.join(close)}" if close else ""
    return ValueError(f"no {noun} is called {name!r}{hint}")
