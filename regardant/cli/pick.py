"""`regardant pick`: which system to take for a need, ranked from measurements on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regardant.cli.cost import DEFAULT, show_progress
from regardant.cli.output import print_json, print_table
from regardant.core.errors import require

if TYPE_CHECKING:
    from regardant.compare.outlook import Outlook
    from regardant.compare.pick import Choice, Need

SHAPE = (128, 2)
"""Width and heads where nothing is on file."""


def pick(
    systems: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAMES]",
            help="Systems to choose among, named as for compare (moh@top_k=1, a+b, module:Class); those on "
            "file and a set where none is named.",
        ),
    ] = None,
    length: Annotated[
        int, typer.Option(min=1, help="Tokens of the input, or before the decoded one.")
    ] = 4096,
    causal: Annotated[
        bool | None, typer.Option("--causal/--bidirectional", help="Either, where neither is given.")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="It must decode; rank by that.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Rank by forward and backward together.")] = False,
    memory: Annotated[str | None, typer.Option(help="The most that a layer may take: 2GB, 512MiB.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Width; what is on file, or 128.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Heads; what is on file, or 2.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder with what is on file; new figures go there.")] = Path(
        "reports"
    ),
    measure: Annotated[bool, typer.Option(help="Measure what is not on file.")] = True,
    budget: Annotated[float, typer.Option(min=0.0, help="Seconds of repetitions a point.")] = 0.2,
    longest: Annotated[
        float, typer.Option(min=0.0, help="Seconds; what might take longer is extrapolated.")
    ] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, best first.")] = False,
) -> None:
    """Rank systems for a need, from measurements on this machine, with a reason in a line each.

    What cannot do it is ruled out; then come those that nothing beats in time and quality, the faster first.
    """
    require(not out.exists() or out.is_dir(), f"out is {out}, which is a file, but it must be a folder")
    require((dim is None) == (heads is None), "dim and heads go together: give both or neither")

    from regardant.compare.machine import choose_device, machine
    from regardant.compare.on_file import read, shape_on_file
    from regardant.compare.pick import Need, parse_size, rank
    from regardant.compare.survey import candidates, measure_missing, sequences
    from regardant.compare.workload import Setting

    need = Need(length, causal, decode, train, None if memory is None else parse_size(memory))
    where = choose_device(device)
    width, count = shape_on_file(out, otherwise=SHAPE) if dim is None else (dim, heads)
    setting = Setting("", dim=width, heads=count, causal=causal is not False, device=str(where))
    known = read(out, setting)
    names = sequences(known, dict.fromkeys(systems or [*known.systems, *DEFAULT]), named=bool(systems))
    if measure:
        with show_progress() as progress:
            measure_missing(
                known, names, need, setting, out, budget=budget, longest=longest, progress=progress
            )
    choices = rank(need, candidates(known, names, need))
    if as_json:
        print_json([describe(choice) for choice in choices])
    else:
        print(f"{machine(where)}; a layer of width {width} with {count} heads at {length:,} tokens.")
        _print(need, choices)
    for source in known.sources:
        print(f"from {source}", file=sys.stderr)
    if not any(choice.rank for choice in choices):
        raise typer.Exit(1)


def describe(choice: Choice) -> dict[str, Any]:
    """A choice as data; a figure says whether it was measured."""
    each = choice.candidate
    costs = {"seconds": each.time, "peak_bytes": each.peak, "state_bytes": each.state}
    return {
        "system": each.system,
        "rank": choice.rank,
        "ties": list(choice.ties),
        "reason": choice.reason,
        **{
            name: None if cost is None else asdict(cost) | {"measured": cost.measured}
            for name, cost in costs.items()
        },
        "quality": {
            task: {"value": abs(own.mean), "spread": own.spread} for task, own in each.quality.items()
        },
    }


def _print(need: Need, choices: list[Choice]) -> None:
    from regardant.compare.pick import size

    tasks = list(dict.fromkeys(task for choice in choices for task in choice.candidate.quality))
    unit, scale = ("µs a token", 1e6) if need.decode else ("ms", 1e3)
    columns = ["", "system", unit, "peak", *(["state"] if need.decode else []), *tasks, "why"]
    rows = []
    for choice in choices:
        each = choice.candidate
        place = "–" if choice.rank is None else f"{choice.rank}{'=' if choice.ties else ''}"
        time = _approximately(each.time, lambda seconds: f"{scale * seconds:.3g}")
        sizes = [_approximately(cost, size) for cost in (each.peak, each.state)[: 1 + need.decode]]
        quality = [f"{abs(each.quality[task].mean):.3f}" if task in each.quality else "–" for task in tasks]
        rows.append([place, each.system, time, *sizes, *quality, choice.reason])
    print_table(columns, rows, right=columns[2:-1])
    if not tasks:
        print("No quality is on file: the ranking is by time alone. `regardant compare` measures it.")


def _approximately(cost: Outlook | None, spell: Callable[[float], str]) -> str:
    """A figure, with ~ where it is extrapolated."""
    return "–" if cost is None else f"{'' if cost.measured else '~'}{spell(cost.value)}"
