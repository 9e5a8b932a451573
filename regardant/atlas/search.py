"""Cards by relevance: BM25 over title, slug, tags and summary, by SQLite's full-text index.

The index is built in memory for each search: 216 cards take a few milliseconds, and nothing can be
out of date.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches

from regardant.atlas.card import Card
from regardant.core.errors import require

WEIGHTS = {"slug": 6.0, "title": 4.0, "tags": 3.0, "summary": 1.0}
"""How much a word counts by where it stands."""


@dataclass(frozen=True)
class Hit:
    card: Card
    score: float
    """BM25 under `WEIGHTS`; higher is better, comparable within one search only."""


def search(words: str, deck: Sequence[Card], *, limit: int = 10) -> list[Hit]:
    """The cards that speak of any of the words, best first; inflections count as the same word.

    Where no card has any of them, the beginnings of words are tried.
    """
    require(limit >= 1, f"limit is {limit}, but at least one hit must be asked for")
    terms = list(dict.fromkeys(re.findall(r"\w+", _spelled(words))))
    require(bool(terms), f"{words!r} has no word to search for")
    quoted = [f'"{term}"' for term in terms]
    return _ranked(deck, "porter unicode61", " OR ".join(quoted), limit) or _ranked(
        deck, "unicode61", " OR ".join(f"{term}*" for term in quoted), limit
    )


def nearest(words: str, deck: Sequence[Card]) -> list[str]:
    """Words that the cards do use and that look like the ones asked for."""
    used = {term for card in deck for text in _columns(card).values() for term in _long_words(text)}
    found = [close for term in _long_words(words) for close in get_close_matches(term, used, n=3, cutoff=0.7)]
    return list(dict.fromkeys(found))


def _ranked(deck: Sequence[Card], tokenizer: str, query: str, limit: int) -> list[Hit]:
    columns = ", ".join(WEIGHTS)
    rank = f"bm25(card, {', '.join(map(str, WEIGHTS.values()))})"
    with closing(sqlite3.connect(":memory:")) as index:
        try:
            index.execute(f"CREATE VIRTUAL TABLE card USING fts5({columns}, tokenize = '{tokenizer}')")
        except sqlite3.OperationalError as error:
            raise ValueError(f"SQLite {sqlite3.sqlite_version} of this Python has no FTS5 index") from error
        index.executemany(
            f"INSERT INTO card (rowid, {columns}) VALUES (?{', ?' * len(WEIGHTS)})",
            [(row, *map(_spelled, _columns(card).values())) for row, card in enumerate(deck)],
        )
        rows = index.execute(
            f"SELECT rowid, {rank} FROM card WHERE card MATCH ? ORDER BY {rank}, rowid LIMIT ?",
            (query, limit),
        )
        return [Hit(deck[row], -score) for row, score in rows]


def _spelled(text: str) -> str:
    """Lower case in one spelling, so that quantise finds quantize, and neighbour neighbor."""
    text = re.sub(r"(?<=\w{3})is(?=(?:e[ds]?|ing|ations?|able)\b)", "iz", text.lower())
    return re.sub(r"(?<=\w{3})our", "or", text)


def _columns(card: Card) -> dict[str, str]:
    return {
        "slug": " ".join([card.slug, *card.provides]),
        "title": card.title,
        "tags": ", ".join(card.tags),
        "summary": card.summary,
    }


def _long_words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if len(word) >= 3]
