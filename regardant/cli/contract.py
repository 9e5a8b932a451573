"""`regardant contract`: the contract suites over the systems of the atlas."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regardant.cli.output import print_json

if TYPE_CHECKING:
    from regardant.contract import Report


def contract(
    systems: Annotated[
        list[str] | None, typer.Argument(metavar="[NAMES]", help="Systems; all where none is named.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="All systems of these folders, as in sequence,grid.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Drawn configurations per property.")] = 25,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of reports.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Put the verdicts on file.")] = False,
) -> None:
    """Run the contract suites. Exit code 1 when a system breaks its contract."""
    from regardant.atlas import catalog
    from regardant.cli.verdicts import print_report, running
    from regardant.contract.suites import run, with_a_suite

    if systems and kind is not None:
        raise ValueError(f"--kind is {kind!r}, but systems are named, too: give one or the other")
    chosen = [catalog.system(name).name for name in systems] if systems else with_a_suite(kind)
    reports = []
    with running() as progress:
        for name in chosen:
            reports += run([name], examples=examples, progress=progress)
            if record:
                _record(reports[-1], examples)
            if not as_json:
                progress()
                print_report(reports[-1])
    if as_json:
        print_json([report.as_dict() for report in reports])
    elif len(reports) > 1:
        kept = sum(report.passed for report in reports)
        typer.echo(f"{kept} of {len(reports)} systems keep their contract")
    raise typer.Exit(0 if all(report.passed for report in reports) else 1)


def _record(report: Report, examples: int) -> None:
    """The verdict beside the version of the source that it is about."""
    from importlib.metadata import version

    from regardant.atlas import catalog, source
    from regardant.atlas.record import record_contract

    system = catalog.system(report.name)
    verdict: dict[str, Any] = {
        "fingerprint": source.fingerprint(system.module),
        "passed": report.passed,
        "properties": {each.property: f"{each.status}: {each.detail}" for each in report.verdicts},
        "examples": examples,
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "date": datetime.now(UTC).date().isoformat(),
    }
    record_contract(system.slug, system.name, verdict)
