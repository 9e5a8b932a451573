"""The `regardant` command: registers the commands, and says bad input in one sentence.

Exit codes: 0 fine, 1 a negative answer (nothing found, a contract not kept), 2 bad input.
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from regardant import __version__
from regardant.cli.check import check
from regardant.cli.claim import claim
from regardant.cli.compare import compare
from regardant.cli.contract import contract
from regardant.cli.cost import cost
from regardant.cli.list import list_cards
from regardant.cli.new import new
from regardant.cli.pick import pick
from regardant.cli.search import search_cards
from regardant.cli.show import show
from regardant.cli.status import count_statuses


class OneSentence(TyperGroup):
    """A `ValueError` is bad input: its sentence on stderr, exit code 2, no traceback."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            typer.echo(f"regardant: {error}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=OneSentence,
    help="The attention literature as a library: what there is, what it costs, whether it keeps its word.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"regardant {__version__}")
        raise typer.Exit()


@app.callback()
def regardant(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("list")(list_cards)
app.command("show")(show)
app.command("search")(search_cards)
app.command("status")(count_statuses)
app.command("new")(new)
app.command("contract")(contract)
app.command("check")(check)
app.command("compare")(compare)
app.command("cost")(cost)
app.command("claim")(claim)
app.command("pick")(pick)
