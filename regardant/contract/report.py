"""Verdicts and reports: what a suite found, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped", "exempt"]


class Broken(AssertionError):
    """A property does not hold; the message says what went wrong where."""


class Skip(Exception):
    """A property cannot be asked of this layer; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """One property of one layer. `detail` is a sentence."""

    property: str
    status: Status
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """All verdicts on one layer."""

    name: str
    kind: str
    verdicts: list[Verdict]

    @property
    def passed(self) -> bool:
        """Whether no property failed."""
        return not self.failures

    @property
    def failures(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.status == "failed"]

    @property
    def seconds(self) -> float:
        return sum(verdict.seconds for verdict in self.verdicts)

    @property
    def headline(self) -> str:
        counts = {
            status: sum(verdict.status == status for verdict in self.verdicts)
            for status in ("passed", "failed", "skipped", "exempt")
        }
        said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        outcome = "keeps its contract" if self.passed else "BREAKS its contract"
        return f"{self.name} ({self.kind}) {outcome}: {said}, {self.seconds:.1f} s"

    def verdict(self, name: str) -> Verdict:
        """The verdict on one property."""
        for verdict in self.verdicts:
            if verdict.property == name:
                return verdict
        raise ValueError(
            f"no property is called {name!r}; this report has "
            + ", ".join(verdict.property for verdict in self.verdicts)
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "passed": self.passed,
            "seconds": round(self.seconds, 2),
            "properties": [
                {
                    "property": verdict.property,
                    "status": verdict.status,
                    "detail": verdict.detail,
                    "seconds": round(verdict.seconds, 2),
                }
                for verdict in self.verdicts
            ],
        }

    def lines(self) -> list[tuple[Status | None, str]]:
        """The text, line by line, with the status that each line reports (None: the headline)."""
        width = max((len(verdict.property) for verdict in self.verdicts), default=0)
        rows: list[tuple[Status | None, str]] = [(None, self.headline)]
        for verdict in self.verdicts:
            word = "FAILED" if verdict.status == "failed" else verdict.status
            rows.append((verdict.status, f"  {word:7}  {verdict.property:{width}}  {verdict.detail}"))
        return rows

    def __str__(self) -> str:
        return "\n".join(text for _, text in self.lines())
