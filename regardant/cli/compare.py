"""`regardant compare`: cost and quality of systems side by side, measured here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from regardant.cli.output import print_json, print_table
from regardant.compare.comparison import Comparison, Tick
from regardant.compare.engine import Engine, Processes
from regardant.compare.findings import REPORT, RESULTS, Findings
from regardant.compare.folder import Folder
from regardant.compare.planning import Asked
from regardant.compare.summary import summary
from regardant.core.errors import require, unknown

ENGINES = ("local", "ray")
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAMES]",
            help="Systems: by name, with options (moh@top_k=1), in layers by turns (a+b), or your own as "
            "module:Class; a set where none is named.",
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Systems of this kind: sequence, grid or gate.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="With commas; `none` measures cost alone. The plan's choice otherwise.")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Of the costs; tokens, with commas.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Width of the layers.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Of the models that are trained.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Models of each system on each task.")] = None,
    budget: Annotated[str, typer.Option(help="Time to spend: 90s, 4m, 2h.")] = "4m",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for plan, results and report.")] = Path("reports/compare"),
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with what is there, or begin again.")
    ] = True,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster (RAY_ADDRESS).")] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object of all findings.")] = False,
) -> None:
    """Compare systems: what they cost here, and what small models of them learn, in a given time.

    Writes a report to look at. The same command again goes on where it ended or was killed.
    """
    asked = Asked(
        names=tuple(names or ()), kind=kind, tasks=_words(tasks), lengths=_numbers(lengths), dim=dim,
        heads=heads, layers=layers, seeds=seeds, budget=_seconds(budget), device=device,
    )  # fmt: skip
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    folder = Folder(out, fresh=not resume)
    with _progress() as progress:
        comparison = Comparison(
            asked, folder, engine=_engine(engine, folder), progress=progress, same_machine=engine == "local"
        )
        findings = comparison.run()
    if as_json:
        print_json(asdict(findings) | {"folder": str(out)})
    else:
        table = summary(findings)
        print(table.title + "\n")
        print_table(table.columns, table.rows, right=table.columns[1:])
        print("", *table.notes, sep="\n")
    again = "run the same command again" if resume else "run it again without --fresh"
    if comparison.missing:
        print(f"\n{comparison.missing} measurements are missing: {again} to go on", file=sys.stderr)
    print(f"\nresults: {out / RESULTS}\nreport: {_report(findings, folder, again)}", file=sys.stderr)


def _engine(name: str, folder: Folder) -> Callable[[], Engine]:
    if name == "local":
        return lambda: Processes(folder.log)
    from regardant.compare.on_ray import OnRay

    return OnRay


def _report(findings: Findings, folder: Folder, again: str) -> str:
    """Where the report of these findings lies, or how to get one. It is written only
    where it is older than the results."""
    path = folder.path / REPORT
    # In a short time on a busy machine there may be no result yet.
    there = [each for each in (folder.results.path, folder.path / "plan.json") if each.exists()]
    made_of = max(each.stat().st_mtime for each in there)
    if not path.exists() or path.stat().st_mtime < made_of:
        from regardant.compare.report import NoReport, write

        try:
            write(findings, path)
        except NoReport as reason:
            return f"{reason}, then {again}"
    return str(path)


def _words(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    words = tuple(part.strip() for part in text.split(",") if part.strip())
    require(bool(words), f"tasks is {text!r}, but it names tasks with commas; `none` for no task")
    return () if words == ("none",) else words


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part.replace("_", "")) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(
            f"lengths is {text!r}, but it is whole numbers with commas, as in 1024,4096"
        ) from None


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    require(found is not None, f"budget is {text!r}, but it is a number with s, m or h behind it, as in 4m")
    return float(found[1]) * UNITS[found[2]]


@contextmanager
def _progress() -> Iterator[Callable[[Tick], None]]:
    """A bar on a terminal; in a log, a line now and then."""
    if not sys.stderr.isatty():
        yield _Log()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    look = (
        BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*look, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("starting", total=None, left="")

        def show(tick: Tick) -> None:
            left = "" if tick.left is None else f"{_clock(tick.left)} left"
            now = ", ".join(tick.now)
            bar.update(shown, completed=tick.done, total=tick.of, left=left, description=now)

        yield show


class _Log:
    """A line whenever a tenth more is done."""

    def __init__(self) -> None:
        self._last = -1

    def __call__(self, tick: Tick) -> None:
        tenth = 10 * tick.done // max(tick.of, 1)
        if tick.left is None or tenth == self._last:
            return
        self._last = tenth
        now = ", ".join(tick.now) or "done"
        print(f"[{tick.done}/{tick.of}] {_clock(tick.left)} left: {now}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
