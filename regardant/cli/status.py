"""`regardant status`: how many cards are how far."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from regardant.atlas.catalog import cards
from regardant.atlas.status import STATES, status
from regardant.cli.output import print_json, print_table


def count_statuses(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object of counts.")] = False,
) -> None:
    """Count the cards by kind and status."""
    counts = Counter((card.kind, status(card).state) for card in cards())
    kinds = sorted({kind for kind, _ in counts})
    table = {kind: {state: counts[kind, state] for state in STATES} for kind in kinds}
    total = {state: sum(row[state] for row in table.values()) for state in STATES}
    if as_json:
        print_json({"kinds": table, "total": total})
        return
    columns = (*STATES, "all")
    print_table(
        ("kind", *columns),
        [
            (kind, *(str(row[state]) for state in STATES), str(sum(row.values())))
            for kind, row in [*table.items(), ("total", total)]
        ],
        right=columns,
    )
