"""`regardant contract` and `regardant check`: the contract suites over our systems and anybody's."""

from __future__ import annotations

from typing import Annotated

import typer


def contract(
    systems: Annotated[
        list[str] | None, typer.Argument(metavar="[NAMES]", help="Systems; all where none is named.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="All systems of this folder (sequence, grid, gate).")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Drawn configurations per property.")] = 25,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of verdicts.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Put the verdicts on file.")] = False,
) -> None:
    """Run the contract suites. Exit code 1 when a system breaks its contract."""
    from regardant.atlas.catalog import names
    from regardant.contract import run

    chosen = systems or names(kind)
    reports = run(chosen, examples=examples)
    for report in reports:
        typer.echo(str(report))
    raise typer.Exit(0 if all(report.passed for report in reports) else 1)


def check(
    target: Annotated[str, typer.Argument(help="module:Attribute, a layer, a rule or their class.")],
) -> None:
    """Put your own layer or rule through the contract suites. Exit code 1 when it breaks one."""
    from regardant.contract import check as check_target

    report = check_target(target)
    typer.echo(str(report))
    raise typer.Exit(0 if report.passed else 1)
