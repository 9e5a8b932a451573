"""Tables of text for people, on a terminal or as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

NONE = "-"
"""A cell in which there is nothing to say."""


@dataclass(frozen=True)
class Table:
    """Rows of text under columns, and notes below; all columns but the first hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        rule = ("---", *("---:" for _ in self.columns[1:]))
        lines = (self.columns, rule, *self.rows)
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return f"## {self.title}\n\n{table}" + "".join(f"\n{note}\n" for note in self.notes)
