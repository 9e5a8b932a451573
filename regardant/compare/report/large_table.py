"""The large table: a row a system, with quality by task and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from regardant.compare.crossing import FASTER
from regardant.compare.findings import BASELINE, Cost, Findings, TaskPlan
from regardant.compare.report.compared import common_length, costs_at
from regardant.compare.report.wording import counted, level_with, measure_of, spelled
from regardant.compare.standing import about_single_seeds


@dataclass(frozen=True)
class Column:
    """A column of figures under the heading `group`. `better` is `high` or `low`."""

    title: str
    unit: str
    group: str
    better: str = "low"


@dataclass(frozen=True)
class Cell:
    """A figure: its text, what stands small behind it, and the number that it is sorted by. `best` says that
    it is the column's best, or ties with it."""

    text: str = "–"
    detail: str = ""
    sort: float | None = None
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Row:
    system: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The headings over the columns, and how many each spans."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found


Cells = Mapping[str, Cell]
NONE = Cell()


def table(findings: Findings) -> Table:
    """Sorted by the first column; columns in which nobody has anything are not there."""
    made = [*_qualities(findings), *_times(findings), *_decoding(findings), *_growth(findings)]
    made = [(column, cells) for column, cells in made if any(cell != NONE for cell in cells.values())]
    rows = [Row(name, tuple(cells.get(name, NONE) for _, cells in made)) for name in findings.names]
    if made:
        sign = -1 if made[0][0].better == "high" else 1
        rows.sort(key=lambda row: (row.cells[0].sort is None, sign * (row.cells[0].sort or 0.0)))
    return Table(tuple(column for column, _ in made), tuple(rows), tuple(_notes(findings)))


def _notes(findings: Findings) -> list[str]:
    notes = []
    there = {(cost.system, cost.phase, cost.length) for cost in findings.costs}
    planned = [
        (name, phase, length) in there
        for name in findings.names
        for phase in ("forward", "backward")
        for length in findings.plan.lengths
    ]
    if not all(planned):
        gone = f"{planned.count(False)} of {len(planned)} times of calls are still to be measured"
        notes.append(f"This comparison is not finished: {gone}. The same command again goes on with it.")
    for task in findings.plan.tasks:
        if said := about_single_seeds(findings.standings(task.name)):
            notes.append(f"{task.name}: {said}")
    probed = sorted({f"{run.system} ({run.task}): {run.probe}" for run in findings.runs if run.probe})
    if probed:
        said = "; ".join(probed)
        notes.append(f"Better than can be expected, and so put through the causality probe: {said}.")
    return notes


def _qualities(findings: Findings) -> list[tuple[Column, Cells]]:
    return [
        (
            Column(task.name, task.measure, "Quality", "high" if task.higher_is_better else "low"),
            _quality(findings, task),
        )
        for task in findings.plan.tasks
    ]


def _quality(findings: Findings, task: TaskPlan) -> Cells:
    found = findings.standings(task.name)
    # From one seed of each all tie: there is nothing to shade.
    shaded = {found[0].system, *found[0].ties} if found and found[0].spread is not None else set()
    cells = {}
    for each in found:
        detail = "" if each.deviation is None else f"±{each.deviation:.3f}"
        stands = f"{counted(len(each.values), 'seed')}, rank {each.rank}, {level_with(each)}"
        note = f"{measure_of(task)}: {spelled(each)}, {stands}"
        cells[each.system] = Cell(f"{each.mean:.3f}", detail, each.mean, each.system in shaded, note)
    for failure in findings.failures:
        what, *parts = failure.unit.split("/")
        if what == "quality" and task.name in parts:
            cells.setdefault(failure.system, Cell(failure.outcome, note=failure.reason))
    return cells


def _times(findings: Findings) -> list[tuple[Column, Cells]]:
    """Forward and with backward, and the peak memory of the former, each at its common length."""
    made = []
    for phase, title in (("forward", "forward"), ("backward", "with backward")):
        length = common_length(findings, phase, findings.names)
        if length is None:
            continue
        costs, group = costs_at(findings, phase, length), f"At {length:,} tokens"
        made.append((Column(title, "ms", group), _lowest(costs, "best", lambda value: _three(1e3 * value))))
        if phase == "forward":
            peaks = _lowest(costs, "bytes", lambda value: f"{value / 1e6:,.1f}")
            made.append((Column("peak", "MB", group), peaks))
    return made


def _decoding(findings: Findings) -> list[tuple[Column, Cells]]:
    length = common_length(findings, "decode", findings.names)
    if length is None:
        return []
    costs, group = costs_at(findings, "decode", length), f"Decoding behind {length:,}"
    return [
        (Column("a token", "µs", group), _lowest(costs, "best", lambda value: _three(1e6 * value))),
        (Column("state", "kB", group), _lowest(costs, "state_bytes", lambda value: f"{value / 1e3:,.1f}")),
    ]


def _three(value: float) -> str:
    """Three significant digits, and thousands."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _lowest(costs: Mapping[str, Cost], quantity: str, spell: Callable[[float], str]) -> Cells:
    """Cells of costs; the lowest is best, and all that are within 5 % of it."""
    values = {name: getattr(cost, quantity) for name, cost in costs.items()}
    least = min((value for value in values.values() if value is not None), default=0.0)
    cells = {}
    for name, value in values.items():
        if value is not None:
            cells[name] = Cell(spell(value), sort=value, best=FASTER * value <= least)
        elif costs[name].left_out:
            cells[name] = Cell("left out", note=costs[name].left_out)
    return cells


def _growth(findings: Findings) -> list[tuple[Column, Cells]]:
    """The exponent of the forward time, and from where on the baseline is slower."""
    exponents = {
        each.system: Cell(
            f"{each.exponent:.2f}", "" if each.error is None else f"±{each.error:.2f}", each.exponent
        )
        for each in findings.growths()
        if (each.phase, each.quantity) == ("forward", "seconds")
    }
    crossings = {}
    for each in findings.crossovers():
        if each.phase != "forward":
            continue
        if each.how == "unknown":
            why = "slower at the only length measured; where the lines cross takes two lengths to tell"
            crossings[each.system] = Cell("unknown", note=why)
        elif each.length is None:
            why = "the lines do not cross, or too far out to be believed"
            crossings[each.system] = Cell("never", note=why)
        elif each.how == "measured":
            crossings[each.system] = Cell(f"{each.length:,.0f}", sort=each.length, note=each.how)
        else:
            rough = float(f"{each.length:.1e}")
            how = "extrapolated: where the lines through the last points cross"
            crossings[each.system] = Cell(f"~{rough:,.0f}", sort=each.length, note=how)
    group = "Growth, forward"
    return [
        (Column("time", "exponent of n", group), exponents),
        (Column(f"beats {BASELINE} from", "tokens", group), crossings),
    ]
