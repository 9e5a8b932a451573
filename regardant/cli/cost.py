"""`regardant cost`: time, memory and growth of systems, measured here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from regardant.atlas.catalog import check_kind, names
from regardant.cli.output import print_json, print_table
from regardant.core.errors import require

DEFAULT = (
    "softmax",
    "sliding-window",
    "lightning-attention-2",
    "flowformer",
    "aaren",
    "routing-transformer",
    "moh",
    "clipped-softmax",
    "gated-attention",
    "neighborhood-1d",
    "faster-neighborhood-attention",
    "axial-transformer",
    "ccnet",
    "eca-net",
)
"""One for each shape that an attention comes in: what is measured when no name is given."""


def cost(
    systems: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAMES]", help="Systems, or your own as module:Class; a set where none is named."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="All systems of this kind: sequence, grid or gate.")
    ] = None,
    lengths: Annotated[
        str, typer.Option(help="Tokens, or positions of a map; with commas.")
    ] = "1024,2048,4096,8192,16384",
    positions: Annotated[str, typer.Option(help="Where in a text a token is decoded.")] = "100,1000,10000",
    phases: Annotated[
        str, typer.Option(help="forward, backward (with forward), decode.")
    ] = "forward,backward,decode",
    dim: Annotated[int, typer.Option(min=1, help="Width of the layers; channels of gates.")] = 128,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Samples a call.")] = 1,
    causal: Annotated[bool, typer.Option(help="Causal, where a system can be.")] = True,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; torch's choice where not given.")
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory as well.")] = True,
    budget: Annotated[float, typer.Option(min=0.0, help="Seconds of repetitions a point.")] = 0.2,
    longest: Annotated[
        float, typer.Option(min=0.0, help="Seconds; what might take longer is left out.")
    ] = 3.0,
    sizes: Annotated[
        str, typer.Option(help="Sides of the images that backbones are measured on; with commas.")
    ] = "32,64,128,224,256",
    seed: Annotated[int, typer.Option(help="For weights and inputs.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for cost.jsonl and cost.md.")] = Path("reports"),
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Keep what was measured before, or measure anew.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of measurements.")] = False,
) -> None:
    """Measure time, peak memory and their growth, forward, backward and per decoded token.

    Of backbones (`maxvit_tiny`): parameters, multiply-adds and the time of a forward pass by size of image.

    What was measured before on this machine, by the same code and versions, is not measured again.
    """
    chosen = _choose(systems, kind)
    ask = dict(
        lengths=_numbers("lengths", lengths), positions=_numbers("positions", positions),
        phases=[part.strip() for part in phases.split(",") if part.strip()], memory=memory,
    )  # fmt: skip
    require(not out.exists() or out.is_dir(), f"out is {out}, which is a file, but it must be a folder")

    import torch

    from regardant.cli.backbone_cost import cost_of_backbones
    from regardant.compare.backbone_cost import is_backbone
    from regardant.compare.cost import Cost
    from regardant.compare.journal import Journal, write_whole
    from regardant.compare.machine import choose_device, choose_dtype, machine
    from regardant.compare.workload import Setting

    if threads is not None:
        torch.set_num_threads(threads)
    where = choose_device(device)
    choose_dtype(dtype, where)
    backbones = [name for name in chosen if is_backbone(name)]
    if backbones:
        cost_of_backbones(
            backbones, sizes=_numbers("sizes", sizes), budget=budget, device=where, as_json=as_json
        )
        chosen = [name for name in chosen if name not in backbones]
        if not chosen:
            return
    shared = dict(dim=dim, heads=heads, batch=batch, causal=causal, dtype=dtype, device=str(where), seed=seed)
    with show_progress() as progress:
        measurer = Cost(
            Journal(out / "cost.jsonl", fresh=not resume), budget=budget, longest=longest, progress=progress
        )
        found = measurer.measure([Setting(name, **shared) for name in chosen], **ask)

    from dataclasses import asdict

    from regardant.compare.cost_table import tables

    made = tables(found)
    about = (
        f"{machine(where)}; torch {torch.__version__}; {dtype}, batch {batch}, width {dim}, {heads} heads, "
        f"{'causal' if causal else 'not causal'} where a system can be; seed {seed}."
    )
    write_whole(out / "cost.md", "\n".join([f"# Cost\n\n{about}\n", *(table.markdown() for table in made)]))
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        print(about)
        for table in made:
            print(f"\n{table.title}")
            print_table(table.columns, table.rows, right=table.columns[1:])
            print(*table.notes, sep="\n", end="\n" if table.notes else "")
    print(f"\nfigures: {out / 'cost.jsonl'}\ntables: {out / 'cost.md'}", file=sys.stderr)


def _choose(systems: list[str] | None, kind: str | None) -> list[str]:
    if systems:
        require(kind is None, f"kind is {kind!r}, but systems are named: give one or the other")
        return list(dict.fromkeys(systems))
    if kind is None:
        return list(DEFAULT)
    check_kind(kind)
    return names(kind)


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part.replace("_", "")) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(
            f"{name} is {text!r}, but it is whole numbers with commas, as in 1024,4096"
        ) from None


@contextmanager
def show_progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal; in a log, a line when something else is begun."""
    if not sys.stderr.isatty():
        yield _log
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    look = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*look, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("cost")
        yield lambda known, asked, now: bar.update(task, completed=known, total=asked, description=now)


def _log(known: int, asked: int, now: str) -> None:
    if ":" not in now:
        print(f"[{known}/{asked}] {now}", file=sys.stderr, flush=True)
