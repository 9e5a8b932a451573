"""How reports of the contract suites are printed, and what is shown while they run."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from regardant.contract import Report

COLOURS = {"passed": "green", "failed": "red", "skipped": "bright_black", "exempt": "yellow"}


def print_report(report: Report) -> None:
    """The headline and one line a property; colours on a terminal only."""
    for status, text in report.lines():
        if status is None:
            typer.secho(text, bold=True)
        else:
            typer.secho(text, fg=COLOURS[status])


@contextmanager
def running() -> Iterator[Callable[[str, str], None]]:
    """Gives what shows, on a terminal, the system and the property that run now.

    Without arguments it clears its line. hypothesis meanwhile keeps its files out of the current folder.
    """
    from hypothesis.configuration import set_hypothesis_home_dir

    shown = sys.stderr.isatty()

    def progress(name: str = "", title: str = "") -> None:
        if shown:
            sys.stderr.write(f"\r\x1b[2K{name}: {title} …" if name else "\r\x1b[2K")
            sys.stderr.flush()

    with tempfile.TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield progress
        finally:
            progress()
            set_hypothesis_home_dir(None)
