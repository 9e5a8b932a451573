"""Which edits run on which architectures: tried out, not declared.

    python -m regardant.contract.architectures        # writes the table into docs/edits.md

Each edit's examples are applied to a small model of each architecture, which then makes a pass and, where it
writes text, goes on by a cache. "yes": one of them fired, the outputs finite; otherwise the refusal of
the first, word by word.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regardant.atlas import catalog
from regardant.contract.edit import LENGTH
from regardant.edit.apply import apply
from regardant.edit.edit import Edit
from regardant.world.families import FAMILIES, Family

DOCS = catalog.PACKAGE.parent / "docs" / "edits.md"
BEGIN, END = "<!-- table: architectures -->", "<!-- end -->"


def edits() -> dict[str, type[Edit]]:
    """The registered edits by their names."""
    return {name: catalog.resolve(name) for name in catalog.names("edit")}


def tried(maker: type[Edit], family: Family) -> str:
    """ "yes", or the sentence by which the edit refuses the architecture."""
    try:
        model = family.make()
    except ValueError:  # an attention of its own, which has no other implementation
        model = family.make(attention="eager")
    found = [_applied(maker, settings, model, family) for settings in maker.examples()]
    return "yes" if "yes" in found else found[0]


def _applied(maker: type[Edit], settings: dict[str, Any], model: nn.Module, family: Family) -> str:
    settings = {name: value for name, value in settings.items() if name != "layers"}
    inputs = family.inputs(length=LENGTH)
    try:
        with torch.no_grad(), apply(model, maker(**settings)):
            output = family.logits(model(**inputs))
            if family.causal:
                given = {name: each for name, each in inputs.items() if name != "decoder_input_ids"}
                model.generate(**given, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    except ValueError as refusal:
        return str(refusal)
    return "yes" if bool(torch.isfinite(output).all()) else "its outputs are not finite"


def table() -> str:
    """Architectures down, edits across; below, why some are refused."""
    makers, reasons, rows = edits(), [], []
    for family in FAMILIES.values():
        cells = []
        for maker in makers.values():
            found = tried(maker, family)
            if found != "yes":
                if found not in reasons:
                    reasons.append(found)
                found = f"[{reasons.index(found) + 1}]"
            cells.append(found)
        rows.append([family.name, *cells])
    columns = ["architecture", *(f"`{name}`" for name in makers)]
    lines = [columns, ["---"] * len(columns), *rows]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "\n".join(notes)


def write(path: Path = DOCS) -> None:
    """Put the table between its marks."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{table()}\n{rest[rest.index(END) :]}", encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write()
