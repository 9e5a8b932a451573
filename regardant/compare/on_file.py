"""What was measured on this machine before: by `regardant cost`, and by comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from regardant.compare.bench import machine_of
from regardant.compare.findings import PLAN, Findings
from regardant.compare.front import Quality
from regardant.compare.journal import Journal
from regardant.compare.machine import versions
from regardant.compare.measurement import Measurement
from regardant.compare.selection import layers_of
from regardant.compare.workload import Setting, settle

JOURNAL = "cost.jsonl"

Shape = tuple[int, int]
"""Width and heads of a layer."""


@dataclass
class OnFile:
    """Figures by system, phase and quantity, each by its length; and quality by system and task."""

    costs: dict[tuple[str, str, str], dict[int, float]] = field(default_factory=dict)
    quality: dict[str, dict[str, Quality]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Why a system could not be measured."""
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Of systems that comparisons know by a name of their own: the mixers in their layers, with options."""
    sources: list[str] = field(default_factory=list)
    """Where they come from, in words."""

    def figures(self, system: str, phase: str, quantity: str) -> Mapping[int, float]:
        """By length. Of a layout also what follows from its parts: the mean, or the largest of the peaks of
        forward passes, where one part is freed before the next runs."""
        together = max if (phase, quantity) == ("forward", "bytes") else fmean
        parts = [self.costs.get((part, phase, quantity), {}) for part in self.parts_of(system)]
        both = set.intersection(*map(set, parts))
        found = {length: together(part[length] for part in parts) for length in both}
        return found | self.costs.get((system, phase, quantity), {})

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys([*(system for system, _, _ in self.costs), *self.quality]))

    def parts_of(self, system: str) -> tuple[str, ...]:
        return self.parts.get(system) or layers_of(system)

    def add(self, system: str, phase: str, quantity: str, length: int, value: float | None) -> None:
        if value is not None:
            self.costs.setdefault((system, phase, quantity), {})[length] = value

    def add_measurements(self, measurements: Iterable[Measurement]) -> None:
        """Times are those of the least disturbed repetition; in decoding, the bytes are the state's."""
        for each in measurements:
            self.add(each.system, each.phase, "seconds", each.length, each.best)
            quantity = "state_bytes" if each.phase == "decode" else "bytes"
            self.add(each.system, each.phase, quantity, each.length, each.bytes)


def shape_on_file(folder: Path, *, otherwise: Shape) -> Shape:
    """The width and heads that most figures in a folder are of."""
    if not folder.is_dir():
        return otherwise
    counts = Counter((entry["dim"], entry["heads"]) for entry in Journal(folder / JOURNAL))
    for findings in comparisons(folder):
        counts[findings.plan.dim, findings.plan.heads] += len(findings.costs)
    return counts.most_common(1)[0][0] if counts else otherwise


def comparisons(folder: Path) -> Iterator[Findings]:
    """The comparisons in a folder and in those under it, the latest first."""
    found = [Findings.read(path.parent) for path in folder.glob(f"**/{PLAN}")]
    yield from sorted(found, key=lambda each: max((at.last for at in each.origins), default=""), reverse=True)


def read(folder: Path, setting: Setting) -> OnFile:
    """What a folder holds for this machine, these versions and layers of this shape (`setting.system` aside).

    Costs of the journal count if the code is the same still, those of a comparison if machine and torch are.
    Quality comes from the latest comparison that has any: values of different plans do not compare.
    """
    found = OnFile()
    if not folder.is_dir():
        return found
    for findings in comparisons(folder):
        _add_comparison(found, findings, setting)
    own = [each for each in _journal(folder) if _is_current(each, setting)]
    found.add_measurements(own)
    if own:
        found.sources.append(f"{len(own):,} figures in {folder / JOURNAL}")
    return found


def _journal(folder: Path) -> Iterator[Measurement]:
    for entry in Journal(folder / JOURNAL):
        yield Measurement(**entry)


def _is_current(each: Measurement, setting: Setting) -> bool:
    """Whether a measurement stands for what would be measured now."""
    if (each.dim, each.heads) != (setting.dim, setting.heads):
        return False
    try:
        now = settle(replace(setting, system=each.system))
        blank = Measurement.blank(now, each.phase, each.quantity, each.length)
    except ValueError:
        # A system that there is no more.
        return False
    return each.identity == blank.identity


def _add_comparison(found: OnFile, findings: Findings, setting: Setting) -> None:
    found.parts |= {system.name: system.specs or system.parts for system in findings.plan.systems}
    plan, here = findings.plan, (machine_of(setting.device), versions()["torch"])
    # Comparisons run everything causal.
    fits = (plan.dim, plan.heads, True) == (setting.dim, setting.heads, setting.causal)
    known = all((origin.machine, origin.versions.get("torch")) == here for origin in findings.origins)
    if fits and known and findings.costs:
        for cost in findings.costs:
            found.add(cost.system, cost.phase, "seconds", cost.length, cost.best)
            found.add(cost.system, cost.phase, "bytes", cost.length, cost.bytes)
            found.add(cost.system, cost.phase, "state_bytes", cost.length, cost.state_bytes)
        found.sources.append(f"{len(findings.costs):,} costs in {findings.folder}")
    if found.quality:
        return
    for task in plan.tasks:
        for each in findings.standings(task.name) if task.kind == "sequence" else ():
            quality = Quality.of(each, higher_is_better=task.higher_is_better)
            found.quality.setdefault(each.system, {})[task.name] = quality
    if found.quality:
        found.sources.append(f"quality in {findings.folder}")
