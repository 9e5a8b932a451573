"""Targets: figures to reach and how they are measured; a run over a list of them goes on where it stopped."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import monotonic
from typing import Any

import torch

from bench import limits
from bench.limits import Limits
from bench.results_file import Results
from regardant.compare.clock import Timing, keep_freed_memory
from regardant.compare.measurement import code

Found = tuple[float, Mapping[str, Timing]]
"""The figure, and the timings that it was made of."""


@dataclass(frozen=True)
class Target:
    """A figure to reach. Where `passes` is below `stretch`, more is better; else less is.

    `missing` says why it cannot be measured here (a peer that is not installed); it is left out then.
    """

    name: str
    passes: float
    stretch: float
    measure: Callable[[Limits], Found]
    missing: str = ""

    def verdict(self, value: float) -> str:
        sign = 1 if self.passes < self.stretch else -1
        if sign * value >= sign * self.stretch:
            return "stretch"
        return "pass" if sign * value >= sign * self.passes else "behind"


def table(
    title: str, targets: Sequence[Target], rows: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]
) -> str:
    """What was measured, in the order of the targets."""
    lines = [
        f"# {title}", "", f"{about['machine']}; torch {about['versions']['torch']}.", "",
        "| target | pass | stretch | measured | verdict |", "| --- | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for target in targets:
        if target.name in rows:
            value = rows[target.name]["value"]
            figures = " | ".join(f"{x:.3g}" for x in (target.passes, target.stretch, value))
            lines.append(f"| {target.name} | {figures} | {target.verdict(value)} |")
    return "\n".join(lines) + "\n"


def arguments(text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--only", default="", help="words with commas; targets whose name holds one of them")
    parser.add_argument("--seconds", type=float, default=540, help="begin nothing new after so long")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is chosen")
    return parser


def run(
    title: str, targets: Sequence[Target], results: Results, asked: argparse.Namespace,
    *, device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Measure what is asked for and missing, write each figure down, and print the table."""
    words = [word.strip() for word in asked.only.split(",") if word.strip()]
    chosen = [each for each in targets if not words or any(word in each.name for word in words)]
    keep_freed_memory()
    its, end, peaks, done = code("lightning-attention-2"), monotonic() + asked.seconds, None, True
    for target in chosen:
        if target.missing:
            print(f"{target.name}: left out, {target.missing}", flush=True)
            continue
        if not asked.fresh and results.has(target.name, its):
            continue
        if monotonic() > end:
            done = False
            break
        if peaks is None:
            peaks = results.quiet.watch(partial(limits.measure, device=device))[0]
        (value, timings), share = results.quiet.watch(partial(target.measure, peaks))
        row = {"value": value, "verdict": target.verdict(value), "quiet": share, "code": its}
        row["limits"] = asdict(peaks)
        results.put(target.name, row | {"timings": {name: asdict(its) for name, its in timings.items()}})
        print(f"{target.name}: {value:.3g} ({target.verdict(value)}, {share:.0%} of the machine)", flush=True)
    text = table(title, targets, results.rows, results.about)
    print(f"\n{text}\n{results.path} and {results.write_beside(text)}")
    if not done:
        print("Not finished: run it again to go on.")
