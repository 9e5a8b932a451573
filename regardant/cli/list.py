"""`regardant list`: every card with its kind and its status."""

from __future__ import annotations

from typing import Annotated

import typer

from regardant.atlas.card import Card
from regardant.atlas.catalog import KINDS, cards, check_kind
from regardant.atlas.status import STATES, Status, status
from regardant.cli.output import print_json, print_table
from regardant.core.errors import require


def list_cards(
    kind: Annotated[
        str | None,
        typer.Option(help="Only this kind: of card (vision, mixer) or of system (sequence, grid)."),
    ] = None,
    status_is: Annotated[
        str | None, typer.Option("--status", help="Only this status: card, built or checked.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """List the cards: 214 papers and the baselines."""
    if kind is not None:
        check_kind(kind)
    require(
        status_is is None or status_is in STATES,
        f"no status is called {status_is!r}; the statuses are {', '.join(STATES)}",
    )
    found = [(card, status(card)) for card in cards() if kind is None or is_of(kind, card)]
    chosen = [(card, its) for card, its in found if status_is in (None, its.state)]
    if as_json:
        print_json([summarize(card, its) for card, its in chosen])
        return
    print_table(
        ("slug", "year", "kind", "status", "fidelity", "systems", "title"),
        [
            (
                card.slug,
                str(card.year),
                card.kind,
                its.state,
                card.fidelity,
                ", ".join(card.provides),
                card.title,
            )
            for card, its in chosen
        ],
    )


def is_of(kind: str, card: Card) -> bool:
    """Whether a card is of this kind, or gave a system that is."""
    return card.kind == kind or (kind in KINDS and any(system.kind == kind for system in card.systems))


def summarize(card: Card, its: Status) -> dict[str, object]:
    return {
        "slug": card.slug,
        "title": card.title,
        "arxiv": card.arxiv,
        "year": card.year,
        "kind": card.kind,
        "status": its.state,
        "fidelity": card.fidelity,
        "systems": list(card.provides),
    }
