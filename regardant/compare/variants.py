"""Every named variant, counted, beside what its paper prints: `python -m regardant.compare.variants`.

Writes docs/variants.md; `--check` only says whether it is up to date. The paper's figures are the cards'
(`[figures]`, see `regardant.atlas.figures`), ours are counted on the meta device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from regardant.atlas import catalog
from regardant.atlas.figures import PaperFigures, Printed
from regardant.backbone.kit.named import NamedNetwork
from regardant.compare.backbone_cost import Counted, counted, is_backbone

DOCS = catalog.PACKAGE.parent / "docs" / "variants.md"
MISSING = "no figure in the paper"
HEADING = """\
# The named variants and their papers' figures

Made by `python -m regardant.compare.variants` from the classes and the cards; not to be edited by hand.

Parameters are those of the network with the classes of its paper, as it trains, or fused where the paper
counts it fused. Multiply-adds are those of matrix products, convolutions and attentions for one square image
of the given side, each counted once; norms, activations, softmax, additions and Fourier transforms are not
among them. The difference is ours over the paper's. A figure agrees where it is within one percent, or within
what the paper's last digit can tell; where it does not, the note says how the paper counts, or what is not
known about it.
"""


@dataclass(frozen=True)
class Row:
    """One variant: what is counted, and what its paper prints."""

    name: str
    slug: str
    ours: Counted
    paper: PaperFigures

    def pairs(self) -> Iterator[tuple[str, int, Printed | None]]:
        """Quantity, our count, the paper's figure."""
        yield "parameters", self.ours.parameters, self.paper.parameters
        yield "multiply-adds", self.ours.multiply_adds, self.paper.multiply_adds

    @property
    def agrees(self) -> bool:
        return all(printed is None or printed.agrees(found) for _, found, printed in self.pairs())


def names() -> list[str]:
    """All variants of backbones on images, in the order of their cards."""
    return [name for name in catalog.variants() if is_backbone(name)]


@cache
def row(name: str) -> Row:
    """One variant, counted now."""
    card = catalog.card(name)
    paper = card.figures.get(name, PaperFigures())
    network: str | NamedNetwork = name
    if paper.fused:
        with torch.device("meta"):
            network = catalog.create(name).eval().fuse()
    return Row(name, card.slug, counted(network, size=paper.side), paper)


def table(rows: list[Row]) -> str:
    """As Markdown, with the notes below, one for all variants that share it."""
    columns = [
        "variant", "card", "side", "parameters", "paper", "difference", "multiply-adds", "paper",
        "difference", "note",
    ]  # fmt: skip
    lines, notes = [columns, ["---"] * len(columns)], []
    for each in rows:
        number = ""
        if each.paper.note:
            if each.paper.note not in notes:
                notes.append(each.paper.note)
            number = f"[{notes.index(each.paper.note) + 1}]"
        fused = ", fused" if each.paper.fused else ""
        cells = [f"`{each.name}`{fused}", each.slug, str(each.paper.side)]
        for _, found, printed in each.pairs():
            cells += _cells(found, printed)
        lines.append([*cells, number])
    written = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return written + "\n\n" + "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))


def _cells(found: int, printed: Printed | None) -> list[str]:
    unit, letter = (1e9, "G") if found >= 10**9 and (printed is None or printed.unit >= 10**9) else (1e6, "M")
    ours = f"{found / unit:.2f}{letter}"
    if printed is None:
        return [ours, MISSING, ""]
    return [ours, printed.text, f"{100 * printed.difference(found):+.1f} %"]


def document() -> str:
    return f"{HEADING}\n{table([row(name) for name in names()])}\n"


def main(arguments: list[str], path: Path = DOCS) -> int:
    made = document()
    if "--check" in arguments:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if made != old:
            print(f"{path.name}: not up to date; run it without --check", file=sys.stderr)
        return int(made != old)
    path.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
