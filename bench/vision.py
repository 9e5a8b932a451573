"""Vision systems against their authors' code: same weights, same images, forward and forward and backward.

    REGARDANT_OFFICIAL=<folder> python -m bench.vision [--only maxvit,davit] [--seconds 30] [--fresh]

Ours and theirs run one after the other in every round, whole networks on images with channels first as both
take them, layers on what their networks hand to them (`vision_layers`); the ratio is the median over the
rounds of theirs by ours, so that below 1 we are slower, which is a bug where chance does not explain it.
Forward passes are in eval mode, where outputs are compared, backward ones in training mode. What a row needs
is said in `vision_official`; without it the row is skipped, with the reason. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from math import comb
from statistics import median
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench import vision_official as its
from bench.contest import Contest
from bench.quiet import ENOUGH
from bench.results_file import Results
from bench.vision_layers import LAYERS
from bench.vision_match import IMAGE, IMAGES, Match, Shapes, alike, spell
from regardant.atlas import catalog, source
from regardant.compare.clock import keep_freed_memory
from regardant.compare.measurement import code
from regardant.core.errors import require

PHASES = ("forward", "backward")
SPELT = ("forward", "forward and backward")
PRODUCTS = (
    "addmm", "mm", "bmm", "baddbmm", "mkldnn_convolution", "convolution_backward", "_fft_r2c", "_fft_c2r",
    "_fft_c2c",
)  # fmt: skip
"""What calls of either side spend in the same libraries."""
TARGET = 1.3
"""What the median of all rows is to be."""
ROUNDS = 6
"""At least: fewer could not tell a loss from chance."""
CHANCE = 0.05
"""A row is behind where two of one speed would lose as many rounds as rarely as that."""
MAPS = ((1, 256, 56, 56), (8, 256, 24, 24))
"""With blocks of 8 that do not touch the border, where timm's layer differs."""


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
        layer=True,
    ),
    Match(
        "halonet-attention / halonet-pytorch", "halonet-attention", its.halonet_package, "halonet-pytorch",
        MAPS, border=None, layer=True,
    ),
    Match("ulsam / ULSAM", "ulsam", its.ulsam, "ULSAM", ((1, 64, 112, 112), (8, 64, 28, 28)), layer=True),
    *LAYERS,
)  # fmt: skip
KINDS = {False: "whole networks", True: "layers by themselves"}


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


def compare(match: Match, made: its.Two, shape: Shapes, phase: str) -> dict[str, Any]:
    """How far the outputs differ, in parts of the largest, and how long both take."""
    for each in made:
        each.train(phase == "backward" and match.trains)
        for part in each.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.0  # so that statistics stay, however often each runs
    contest = match.contest(made, shape)
    row: dict[str, Any] = {}
    if phase == "forward" and match.border is not None:
        row["difference"] = difference(contest, match.border, match.laid)
    rounds = contest.rounds(phase, least=ROUNDS)
    ratios = sorted(theirs / ours for ours, theirs in rounds)
    ours, theirs = (median(each) for each in zip(*rounds))
    return row | {
        "ours": ours, "theirs": theirs, "ratio": median(ratios), "least": ratios[0], "most": ratios[-1],
        "rounds": len(rounds), "won": sum(ratio > 1 for ratio in ratios),
        "products": share_of_products(contest.calls(phase)[1]),
    }  # fmt: skip


def share_of_products(call: Callable[[], object]) -> float:
    """The part of a call's time that goes to products, convolutions and Fourier transforms by themselves."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
    return sum(spent.get(name, 0) for name in PRODUCTS) / sum(spent.values())


def difference(contest: Contest, border: int, laid: Callable[[Tensor], Tensor] = alike) -> float:
    """The largest difference of the outputs inside the border, in parts of the largest output."""
    ours, theirs = contest.outputs()
    ours = laid(ours)
    require(
        ours.shape == theirs.shape, f"outputs are {tuple(ours.shape)} and {tuple(theirs.shape)}, not alike"
    )
    inner = slice(border, -border) if border else slice(None)
    return ((ours - theirs).abs()[..., inner, inner].max() / theirs.abs().max()).item()


def describe(name: str, row: dict[str, Any]) -> str:
    told = (
        f"{name}: {row['ours'] * 1e3:.1f} against {row['theirs'] * 1e3:.1f} ms, ratio {row['ratio']:.2f} "
        f"({row['least']:.2f} to {row['most']:.2f} in {row['rounds']} rounds)"
    )
    if "difference" in row:
        told += f", outputs {row['difference']:.0e} apart"
    return told if row["quiet"] >= ENOUGH else f"{told}, beside other work: {row['quiet']:.0%} of the machine"


def table(results: Results) -> str:
    """Ratios by match and shape, whole networks and layers apart, their medians, and where we are behind."""
    lines = [
        "# Vision systems against their authors' code", "",
        f"{results.about['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in results.about["versions"].items()) + ".", "",
        "Milliseconds of ours, and how many times as long theirs takes (the median of paired rounds). "
        "*Apart* is the largest difference of the outputs, in parts of the largest output; "
        "figures with a ~ were taken beside other work and count as missing. *At most* is the ratio that "
        "would be left if all but the matrix products, convolutions and Fourier transforms of theirs took no "
        "time: both sides spend that in the same libraries.",
    ]  # fmt: skip
    for kind, told in KINDS.items():
        if rows := [row for row in results.rows.values() if is_layer(row) is kind]:
            lines += ["", f"## {told.capitalize()}", "", *_listed(rows)]
    if told := medians(quiet_rows(results)):
        lines += ["", "## Medians", "", *told]
    below = [row for row in quiet_rows(results) if row["ratio"] < 1]
    behind = [row for row in below if is_behind(row)]
    lines += ["", *_told("Behind", behind)]
    level = [row for row in below if row not in behind]
    return "\n".join([*lines, "", *_told("Below 1, but no more often than chance may say", level)]) + "\n"


def is_behind(row: dict[str, Any]) -> bool:
    """Whether rounds were lost more often than those of two equals."""
    outcomes = sum(comb(row["rounds"], won) for won in range(row["won"] + 1))
    return row["ratio"] < 1 and outcomes / 2 ** row["rounds"] < CHANCE


def _told(what: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"- {row['match']}, {row['phase']} of {row['shape']}: {row['ratio']:.3f}, "
        f"{row['won']} of {row['rounds']} rounds won"
        for row in rows
    ]
    return [f"{what}:" if lines else f"{what}: nowhere.", *lines]


def is_layer(row: dict[str, Any]) -> bool:
    """By its match, so that rows need not say it; what is a match no longer was a whole network."""
    return row["match"] in {match.name for match in MATCHES if match.layer}


def medians(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Of whole networks, of layers, and of all together."""
    lines = []
    kinds = {told: [row for row in rows if is_layer(row) is kind] for kind, told in KINDS.items()}
    for told, those in (kinds | {"all": rows}).items():
        for phase, spelt in zip(PHASES, SPELT):
            if ratios := [row["ratio"] for row in those if row["phase"] == phase]:
                count = f"{len(ratios)} row{'s' if len(ratios) > 1 else ''}"
                lines.append(f"- {told}, {spelt}: {median(ratios):.2f} (target {TARGET}; {count})")
    return lines


def _listed(rows: Iterable[dict[str, Any]]) -> list[str]:
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["match"], row["shape"]), {})[row["phase"]] = row
    lines = [
        f"| ours / theirs | input | {' | '.join(f'{told} | ratio | at most' for told in SPELT)} | apart |",
        "| --- | --- |" + " ---: |" * 7,
    ]
    for (name, shape), phases in found.items():
        cells = [cell for phase in PHASES for cell in _cells(phases.get(phase))]
        apart = phases.get("forward", {}).get("difference")
        told = "" if apart is None else f"{apart:.0e}"
        lines.append(f"| {name} | {shape} | {' | '.join(cells)} | {told} |")
    return lines


def quiet_rows(results: Results) -> list[dict[str, Any]]:
    """Those that were measured while the machine was left to us."""
    return [row for row in results.rows.values() if row["quiet"] >= ENOUGH]


def _cells(row: dict[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return "", "", ""
    mark = "" if row["quiet"] >= ENOUGH else "~ "
    at_most = f"{1 / row['products']:.2f}" if row["products"] else ""
    return f"{row['ours'] * 1e3:.1f}", f"{mark}{row['ratio']:.2f}", at_most


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
