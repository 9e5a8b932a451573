"""Vision systems against their authors' code: same weights, same images, forward and forward and backward.

    REGARDANT_OFFICIAL=<folder> python -m bench.vision [--only maxvit,davit] [--seconds 30] [--fresh]

Ours and theirs run one after the other in every round, on images with channels first as both take them; the
ratio is the median over the rounds of theirs by ours, so that below 1 we are slower, which is a bug. Forward
passes are in eval mode, where outputs are compared, backward ones in training mode. What a row needs is said
in `vision_official`; without it the row is skipped, with the reason. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from statistics import median
from time import monotonic
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench import vision_official as its
from bench.contest import Contest
from bench.peers_official import missing
from bench.quiet import ENOUGH
from bench.results_file import Results
from regardant.atlas import catalog, source
from regardant.compare.clock import keep_freed_memory
from regardant.compare.measurement import code

PHASES = ("forward", "backward")
SPELT = ("forward", "forward and backward")
PRODUCTS = ("addmm", "mm", "bmm", "baddbmm", "mkldnn_convolution", "convolution_backward")
"""What calls of either side spend in the same libraries."""
TARGET = 1.3
"""What the median of all rows is to be."""
IMAGE, IMAGES = (1, 3, 224, 224), (4, 3, 224, 224)
MAPS = ((1, 256, 56, 56), (8, 256, 16, 16))


@dataclass(frozen=True)
class Match:
    """A system of ours and the code of a repository, and the inputs that they are timed on.

    `border`: so many positions from the edge the outputs may differ; None where all of them do, for the
    reason that stands at `make`. `trains` is False where theirs does something else in training mode.
    """

    name: str
    system: str
    make: Callable[[], its.Two]
    repository: str
    shapes: Sequence[tuple[int, ...]] = (IMAGE, IMAGES)
    border: int | None = 0
    trains: bool = True

    def lacks(self) -> str | None:
        """Why it cannot be measured here, or None."""
        return missing(self.repository) or missing(its.TIMM)


MATCHES = (
    Match("maxvit_tiny / timm", "maxvit", its.maxvit, its.TIMM),
    Match("davit_tiny / davit", "davit", its.davit, "davit"),
    Match("cswin_tiny / CSWin-Transformer", "cswin", its.cswin, "CSWin-Transformer"),
    Match("hat, 4 blocks / HAT", "hat", its.hat, "HAT", ((1, 3, 64, 64), (8, 3, 32, 32))),
    Match("crossvit_9 / CrossViT", "crossvit", its.crossvit, "CrossViT"),
    Match("spectformer_xs / SpectFormers", "spectformer", its.spectformer, "SpectFormers"),
    Match(
        "spectformer_h_small / SpectFormers", "spectformer-h", its.hierarchical_spectformer, "SpectFormers",
        trains=False,
    ),
    Match("ffnet_1 / FFNet", "ffnet", its.ffnet, "FFNet", (IMAGE, IMAGES, (8, 3, 64, 64))),
    Match("biformer_tiny / BiFormer", "biformer", its.biformer, "BiFormer"),
    Match("transnext_micro / TransNeXt", "transnext", its.transnext, "TransNeXt"),
    Match("focalnet_tiny_srf / FocalNet", "focalnet", its.focalnet, "FocalNet"),
    Match("convit_tiny / convit", "convit", its.convit, "convit"),
    Match("evit_tiny / evit", "evit", its.evit, "evit"),
    Match("inline_pvt_tiny / InLine", "inline-pvt", its.inline_pvt, "InLine"),
    Match(
        "halonet-attention / timm", "halonet-attention", its.halonet_timm, its.TIMM, MAPS, border=8,
    ),
    Match(
        "halonet-attention / halonet-pytorch", "halonet-attention", its.halonet_package, "halonet-pytorch",
        MAPS, border=None,
    ),
    Match("ulsam / ULSAM", "ulsam", its.ulsam, "ULSAM", ((1, 64, 112, 112), (8, 64, 28, 28))),
)  # fmt: skip


def made_of(system: str) -> str:
    """Changes with the code of the system, of the core and of the kit: older figures are not its own."""
    kit = sorted((catalog.PACKAGE / "backbone" / "kit").glob("*.py"))
    modules = [f"regardant.backbone.kit.{path.stem}" for path in kit if path.stem != "__init__"]
    return sha256(" ".join([code(system), *map(source.fingerprint, modules)]).encode()).hexdigest()[:16]


def measure(results: Results, chosen: Iterable[Match], *, seconds: float) -> bool:
    """Fill in what is missing; False when the time was up before the end."""
    end = monotonic() + seconds
    for match in chosen:
        if reason := match.lacks():
            print(f"{match.name} is skipped: {reason}")
            continue
        its_code, made = made_of(match.system), None
        for shape in match.shapes:
            for phase in PHASES:
                name = f"{match.name}, {phase} of {spell(shape)}"
                if results.has(name, its_code):
                    continue
                if monotonic() > end:
                    return False
                torch.manual_seed(0)
                made = match.make() if made is None else made
                row, share = results.quiet.watch(partial(compare, match, made, shape, phase))
                about = {"match": match.name, "shape": spell(shape), "phase": phase}
                results.put(name, row := about | row | {"quiet": share, "code": its_code})
                print(describe(name, row), flush=True)
    return True


def compare(match: Match, made: its.Two, shape: tuple[int, ...], phase: str) -> dict[str, Any]:
    """How far the outputs differ, in parts of the largest, and how long both take."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for each in made:
        each.train(phase == "backward" and match.trains)
        for part in each.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.0  # so that statistics stay, however often each runs
    contest = Contest.of_layers(*made, x)
    row: dict[str, Any] = {}
    if phase == "forward" and match.border is not None:
        row["difference"] = difference(contest, match.border)
    rounds = contest.rounds(phase)
    ratios = sorted(theirs / ours for ours, theirs in rounds)
    ours, theirs = (median(each) for each in zip(*rounds))
    return row | {
        "ours": ours, "theirs": theirs, "ratio": median(ratios), "least": ratios[0], "most": ratios[-1],
        "rounds": len(rounds), "products": share_of_products(contest.calls(phase)[1]),
    }  # fmt: skip


def share_of_products(call: Callable[[], object]) -> float:
    """The part of a call's time that goes to matrix products and convolutions by themselves."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
    return sum(spent.get(name, 0) for name in PRODUCTS) / sum(spent.values())


@torch.no_grad()
def difference(contest: Contest, border: int) -> float:
    """The largest difference of the outputs inside the border, in parts of the largest output."""
    ours, theirs = contest.ours(*contest.inputs), contest.theirs(*contest.inputs)
    apart = (ours - theirs).abs()
    inner = slice(border, -border) if border else slice(None)
    return (apart[..., inner, inner].max() / theirs.abs().max()).item()


def spell(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def describe(name: str, row: dict[str, Any]) -> str:
    told = (
        f"{name}: {row['ours'] * 1e3:.1f} against {row['theirs'] * 1e3:.1f} ms, ratio {row['ratio']:.2f} "
        f"({row['least']:.2f} to {row['most']:.2f} in {row['rounds']} rounds)"
    )
    if "difference" in row:
        told += f", outputs {row['difference']:.0e} apart"
    return told if row["quiet"] >= ENOUGH else f"{told}, beside other work: {row['quiet']:.0%} of the machine"


def table(results: Results) -> str:
    """Ratios by match and shape, their median, and where we are behind."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in results.rows.values():
        found.setdefault((row["match"], row["shape"]), {})[row["phase"]] = row
    lines = [
        "# Vision systems against their authors' code", "",
        f"{results.about['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in results.about["versions"].items()) + ".", "",
        "Milliseconds of ours, and how many times as long theirs takes (the median of paired rounds). "
        "*Apart* is the largest difference of the outputs, in parts of the largest output; "
        "figures with a ~ were taken beside other work and count as missing. *At most* is the ratio that "
        "would be left if all but the matrix products and convolutions of theirs took no time: both sides "
        "spend that in the same libraries.", "",
        f"| ours / theirs | input | {' | '.join(f'{told} | ratio | at most' for told in SPELT)} | apart |",
        "| --- | --- |" + " ---: |" * 7,
    ]  # fmt: skip
    for (name, shape), phases in found.items():
        cells = [cell for phase in PHASES for cell in _cells(phases.get(phase))]
        apart = phases.get("forward", {}).get("difference")
        lines.append(
            f"| {name} | {shape} | {' | '.join(cells)} | " + ("" if apart is None else f"{apart:.0e}") + " |"
        )
    for phase, told in zip(PHASES, SPELT):
        ratios = [row["ratio"] for row in quiet_rows(results) if row["phase"] == phase]
        if ratios:
            lines += ["", f"Median of {told}: {median(ratios):.2f} (target {TARGET})."]
    lost = [
        f"- {row['match']}, {row['phase']} of {row['shape']}: {row['ratio']:.2f}"
        for row in quiet_rows(results)
        if row["ratio"] < 1
    ]
    return "\n".join([*lines, "", "Behind:" if lost else "Behind: nowhere.", *lost]) + "\n"


def quiet_rows(results: Results) -> list[dict[str, Any]]:
    """Those that were measured while the machine was left to us."""
    return [row for row in results.rows.values() if row["quiet"] >= ENOUGH]


def _cells(row: dict[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return "", "", ""
    mark = "" if row["quiet"] >= ENOUGH else "~ "
    return f"{row['ours'] * 1e3:.1f}", f"{mark}{row['ratio']:.2f}", f"{1 / row['products']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words with commas; matches whose name holds one of them")
    parser.add_argument("--seconds", type=float, default=540, help="begin nothing new after so long")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is chosen")
    asked = parser.parse_args()
    words = [word.strip() for word in asked.only.split(",") if word.strip()]
    chosen = [match for match in MATCHES if not words or any(word in match.name for word in words)]
    keep_freed_memory()
    results = Results("vision")
    if asked.fresh:
        names = {match.name for match in chosen}
        results.rows = {name: row for name, row in results.rows.items() if row["match"] not in names}
    done = measure(results, chosen, seconds=asked.seconds)
    print(f"\n{table(results)}\n{results.path} and {results.write_beside(table(results))}")
    if not done:
        print("Not finished: run it again to go on.")


if __name__ == "__main__":
    main()
