"""`regardant new`: the three files of a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regardant.atlas.scaffold import scaffold
from regardant.atlas.skeleton import SYSTEMS


def new(
    slug: Annotated[str, typer.Argument(help="The card's slug, as in `regardant list`, or a new one.")],
    kind: Annotated[str, typer.Option(help=f"The system's folder: {', '.join(SYSTEMS)}.")] = "sequence",
    name: Annotated[str | None, typer.Option("--class", help="The system's class, else by the slug.")] = None,
    title: Annotated[str | None, typer.Option(help="The paper's title, for a new card.")] = None,
    arxiv: Annotated[str | None, typer.Option(help="The paper's arXiv id, for a new card.")] = None,
) -> None:
    """Write the card, the system and the experiment of a paper. Nothing is overwritten."""
    made = scaffold(slug, kind=kind, name=name, title=title, arxiv=arxiv)
    print(f"card    {_short(made.card)}{'' if made.new_card else '  (now provides ' + made.target + ')'}")
    print(f"system  {_short(made.system)}")
    print(f"claim   {_short(made.claim)}")
    print("\nnext:")
    steps = [
        f"put the paper's equation into the system, then: regardant contract {slug} --record",
        f"write the experiment, then: regardant claim {slug}",
        f"see how far it is: regardant show {slug}",
    ]
    if made.new_card:
        steps.insert(0, "fill in the card: summary, tags and claim in your own words, the official code")
    for number, step in enumerate(steps, start=1):
        print(f"{number}. {step}")


def _short(path: Path) -> str:
    """The path from here, where that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
