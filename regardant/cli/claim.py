"""`regardant claim`: run the experiment behind a paper's claim."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regardant.cli.output import print_json, print_sections, print_table
from regardant.core.errors import require

if TYPE_CHECKING:
    from regardant.claim.context import Tick
    from regardant.claim.outcome import Outcome
    from regardant.claim.run import Claimed


def claim(
    name: Annotated[str, typer.Argument(help="The slug of a card or the name of a system.")],
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the finished units, from which a killed run goes on.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Put the outcome on file as evidence.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the units that are finished.")] = False,
    scale: Annotated[
        float, typer.Option(help="Share of the training steps: below 1 a try-out, which is never recorded.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Run a paper's experiment. The exit code is 0 whatever the verdict: a claim that fails is a finding."""
    chosen = _read_seeds(seeds)
    from regardant.claim.run import run

    line = ProgressLine()
    try:
        claimed = run(name, seeds=chosen, out=out, progress=line, record=record, fresh=fresh, scale=scale)
    finally:
        line.end()
    if as_json:
        print_json({"slug": claimed.slug, **claimed.evidence})
        return
    _print(claimed, scale=scale)


def _read_seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    require(
        all(part.isascii() and part.isdigit() for part in parts),
        f"seeds is {text!r}, but it is whole numbers with commas between, such as 0,1,2",
    )
    return tuple(int(part) for part in parts)


class ProgressLine:
    """One line on stderr that is written over on a terminal; a line a unit elsewhere."""

    def __init__(self) -> None:
        self._drawn, self._unit, self._width = -1.0, "", 0

    def __call__(self, tick: Tick) -> None:
        left = "" if tick.left is None else f", {_spell(tick.left)} left"
        text = f"{tick.done:4.0%}  {tick.unit}  ({_spell(tick.seconds)}{left})"
        if not sys.stderr.isatty():
            if tick.unit != self._unit:
                print(text, file=sys.stderr, flush=True)
                self._unit = tick.unit
        elif tick.unit != self._unit or tick.seconds - self._drawn >= 0.2:
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._drawn, self._unit, self._width = tick.seconds, tick.unit, len(text)

    def end(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)


def _spell(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _print(claimed: Claimed, *, scale: float) -> None:
    outcome = claimed.outcome
    if scale < 1:
        print(f"a try-out at {scale:g} of the training: its figures mean nothing and are not recorded\n")
    print_sections([(f"{claimed.slug}: {outcome.verdict}", list(_facts(claimed)))])
    print()
    print_table(("quantity", "of", "here", "baseline", "there"), list(_rows(outcome)))
    print()
    print_table(
        ("holds", "about", "criterion", "found", "bound"),
        [
            (
                "yes" if criterion.holds else "no",
                criterion.about,
                criterion.rule,
                f"{criterion.found:.4g}",
                f"{'≤' if criterion.sense == 'at most' else '≥'} {criterion.bound:.4g}",
            )
            for criterion in outcome.criteria
        ],
    )


def _facts(claimed: Claimed) -> Iterable[tuple[str, str]]:
    yield "paper", claimed.paper
    yield "here", claimed.outcome.setting
    yield "seeds", ", ".join(map(str, claimed.evidence["seeds"]))
    for note in claimed.outcome.notes:
        yield "note", note
    yield "time", _spell(claimed.evidence["seconds"])
    yield "on file", "no" if claimed.path is None else claimed.path.name


def _rows(outcome: Outcome) -> Iterable[tuple[str, str, str, str, str]]:
    """Ours and the baselines side by side; a quantity with several of either takes several lines."""
    for figure in outcome.figures:
        ours, baseline = list(figure.ours.items()), list(figure.baseline.items())
        for index in range(max(len(ours), len(baseline))):
            left = ours[index] if index < len(ours) else ("", "")
            right = baseline[index] if index < len(baseline) else ("", "")
            quantity = figure.quantity if index == 0 else ""
            yield quantity, left[0], str(left[1]), right[0], str(right[1])
