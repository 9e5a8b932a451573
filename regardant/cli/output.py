"""How commands print: JSON for scripts, tables for people, plain lines when piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=not _unicode()))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table: drawn on a terminal; piped, aligned columns in full width without a colour or a frame.

    `right` names the columns of numbers, which are aligned on the right.
    """
    if sys.stdout.isatty():
        _draw(columns, rows, right)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths)
        ]
        print("  ".join(cells).rstrip())


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def print_sections(sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> None:
    """Titled lists of name and text, wrapped to the terminal, in full when piped."""
    if not sys.stdout.isatty():
        for title, entries in sections:
            print(f"\n{title}" if title != sections[0][0] else title)
            width = max((len(name) for name, _ in entries), default=0)
            for name, text in entries:
                print(f"  {name.ljust(width)}  {text}".rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, entries in sections:
        console.print(Text(title, style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for name, text in entries:
            table.add_row(Text(f"  {name}"), Text(text))
        console.print(table)
        console.print()


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
