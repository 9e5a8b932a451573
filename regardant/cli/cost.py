"""`regardant cost`: time, memory and growth of systems, measured here."""

from __future__ import annotations

from typing import Annotated

import typer


def cost(
    systems: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAMES]", help="Systems; a default set where none is named."),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Sequence lengths, with commas.")] = "1024,4096,16384",
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Measure time, peak memory and their growth, forward, backward and per decoded token."""
    from regardant.compare.cost import measure

    typer.echo(str(measure(systems, lengths=[int(part) for part in lengths.split(",")], device=device)))
