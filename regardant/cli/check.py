"""`regardant check`: the contract suites over anybody's own layer or rule."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from regardant.cli.output import print_json


def check(
    target: Annotated[str, typer.Argument(help="module:Attribute of a class, a layer or a factory.")],
    kind: Annotated[
        str | None,
        typer.Option(help="sequence, grid, gate, rule, network, task or 'known answers', where not plain."),
    ] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="The width, where it is not free.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="The heads, where they are not free.")] = None,
    causal: Annotated[
        bool | None, typer.Option("--causal/--no-causal", help="What to expect, where it does not say.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Drawn configurations per property.")] = 25,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Put your own layer or rule through the contract suites. Exit code 1 when a property fails."""
    from regardant.cli.verdicts import print_report, running
    from regardant.contract import check as check_target

    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    config: dict[str, Any] = {
        name: value for name, value in (("dim", dim), ("heads", heads)) if value is not None
    }
    with running() as progress:
        report = check_target(
            target, kind=kind, config=config, causal=causal, examples=examples, progress=progress
        )
    if as_json:
        print_json(report.as_dict())
    else:
        print_report(report)
    raise typer.Exit(0 if report.passed else 1)
