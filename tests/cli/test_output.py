"""Tables: plain and whole when piped, drawn on a terminal."""

import json

from regardant.cli.output import print_json, print_sections, print_table


class Terminal:
    """A standard output that says it is a terminal."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        return True


def test_a_piped_table_is_aligned_and_never_cut(capsys) -> None:
    print_table(("name", "n"), [("a" * 200, "1"), ("b", "22")], right=("n",))
    assert capsys.readouterr().out.splitlines() == [
        "name" + " " * 196 + "   n",
        "a" * 200 + "   1",
        "b" + " " * 199 + "  22",
    ]


def test_an_empty_table_is_its_head(capsys) -> None:
    print_table(("name", "n"), [])
    assert capsys.readouterr().out == "name  n\n"


def test_sections_are_names_and_text(capsys) -> None:
    print_sections([("one", [("a", "x" * 200), ("bcd", "y")]), ("two", [("e", "z")])])
    assert capsys.readouterr().out.splitlines() == [
        "one",
        "  a    " + "x" * 200,
        "  bcd  y",
        "",
        "two",
        "  e  z",
    ]


def test_a_terminal_gets_a_drawn_table_with_markup_taken_literally(capsys, monkeypatch) -> None:
    import sys

    monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    print_table(("name",), [("[bold]not markup[/bold]",)])
    print_sections([("[red]title", [("a", "[b]text")])])
    shown = capsys.readouterr().out
    assert "[bold]not markup[/bold]" in shown and "[red]title" in shown and "[b]text" in shown


def test_json_is_json(capsys) -> None:
    print_json({"name": "Übung", "n": [1, 2]})
    assert json.loads(capsys.readouterr().out) == {"name": "Übung", "n": [1, 2]}
