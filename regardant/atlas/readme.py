"""The tables of the README, made from the cards and the evidence: `python -m regardant.atlas.readme`.

    <!-- table: systems -->  …  <!-- end -->

What stands between the marks is replaced; `--check` only says whether it is up to date.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from regardant.atlas import record, source
from regardant.atlas.catalog import KINDS, PACKAGE, cards
from regardant.atlas.status import STATES, status
from regardant.core.errors import require

README = PACKAGE.parent / "README.md"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def systems_table(*, package: Path = PACKAGE) -> str:
    """Every system: its name, kind, paper, declared growth, status and the claim's verdict."""
    rows = []
    for card in cards(package=package):
        state = status(card, package=package).state if card.provides else "card"
        verdict = record.read(card.slug, package=package).get("claim", {}).get("verdict", "")
        for system in card.systems:
            supports = source.supports(system.target, package=package)
            growth = decoding = ""
            if supports is not None:
                growth = f"n^{supports.time:.3g}"
                decoding = {0.0: "constant", 1.0: "grows with n"}.get(supports.state, f"n^{supports.state:g}")
                decoding = decoding if supports.step else ""
            paper = f"[{card.title}]({card.arxiv_url})" if card.arxiv_url else card.title
            rows.append(
                [
                    f"`{system.name}`",
                    system.kind,
                    paper,
                    growth,
                    decoding,
                    state,
                    verdict,
                ]
            )
    return _table(
        ["name", "kind", "paper", "time", "decoding state", "status", "claim"], sorted(rows, key=_order)
    )


def _order(row: list[str]) -> tuple[int, str]:
    return KINDS.index(row[1]), row[0]


def status_table(*, package: Path = PACKAGE) -> str:
    """Cards by kind and status."""
    counts = Counter((card.kind, status(card, package=package).state) for card in cards(package=package))
    kinds = sorted({kind for kind, _ in counts})
    rows = [
        [
            kind,
            *(str(counts[kind, state] or "") for state in STATES),
            str(sum(counts[kind, s] for s in STATES)),
        ]
        for kind in kinds
    ]
    totals = [str(sum(counts[kind, state] for kind in kinds)) for state in STATES]
    return _table(["kind", *STATES, "all"], [*rows, ["**all**", *totals, str(counts.total())]])


TABLES = {"systems": systems_table, "status": status_table}


def filled(text: str, *, package: Path = PACKAGE) -> str:
    """The README with every table made anew."""

    def make(found: re.Match) -> str:
        name = found["name"]
        require(name in TABLES, f"the README asks for the table {name!r}; there are {', '.join(TABLES)}")
        return f"<!-- table: {name} -->\n{TABLES[name](package=package)}\n<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>\w+) -->.*?<!-- end -->", make, text, flags=re.DOTALL)


def main(arguments: list[str]) -> int:
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in arguments:
        if new != old:
            print("README.md: the tables are not up to date; run `make tables`", file=sys.stderr)
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
