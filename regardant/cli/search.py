"""`regardant search`: the cards that speak of something, best first."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from regardant.atlas.catalog import cards
from regardant.atlas.search import nearest, search
from regardant.atlas.status import status
from regardant.cli.list import summarize
from regardant.cli.output import print_json, print_table


def search_cards(
    words: Annotated[list[str], typer.Argument(help="Words; a card that has more of them ranks higher.")],
    limit: Annotated[int, typer.Option(min=1, help="How many cards at most.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects, best first.")] = False,
) -> None:
    """Search titles, tags and summaries. Exit code 1 when nothing is found."""
    deck = cards()
    hits = search(" ".join(words), deck, limit=limit)
    if as_json:
        print_json(
            [
                summarize(hit.card, status(hit.card))
                | {"score": round(hit.score, 3), "summary": hit.card.summary}
                for hit in hits
            ]
        )
    elif hits:
        print_table(
            ("slug", "year", "status", "title", "summary"),
            [
                (hit.card.slug, str(hit.card.year), status(hit.card).state, hit.card.title, hit.card.summary)
                for hit in hits
            ],
        )
    if not hits:
        close = nearest(" ".join(words), deck)
        hint = f"; the cards do speak of {', '.join(close)}" if close else ""
        print(f"no card speaks of {' '.join(words)!r}{hint}", file=sys.stderr)
        raise typer.Exit(1)
