"""`regardant claim`: run the experiment behind a paper's claim."""

from __future__ import annotations

from typing import Annotated

import typer


def claim(
    name: Annotated[str, typer.Argument(help="The slug of a card or the name of a system.")],
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds.")] = None,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Put the outcome on file.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Run a paper's experiment. The exit code is 0 whatever the verdict: a claim that fails is a finding."""
    from regardant.atlas.catalog import card
    from regardant.claim import run

    typer.echo(str(run(card(name).slug, seeds=seeds, record=record)))
