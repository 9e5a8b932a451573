"""Our systems against what else can be installed: same shapes, same weights where the maths is the same.

    python -m bench.peers [--only softmax,flex] [--lengths 512,4096] [--seconds 60] [--fresh]

Ours and the peer's take turns in one process: median and best of at least 20 repetitions (of runs that
take seconds, at least 5; each row says how many). A ratio is the peer's median over ours: below 1 we are
behind, which is a bug. Needs the packages of the extra `peers`. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from time import monotonic
from typing import Any

import torch

from bench import peers_flex, peers_layers, peers_memory, peers_official
from bench.contest import Contest
from bench.quiet import ENOUGH
from bench.results_file import Results
from regardant.compare.clock import keep_freed_memory
from regardant.compare.measurement import code

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
EVEN = 0.98
"""A ratio above this counts as even where both end in the same kernel: it is the noise of the machine."""
BLIND = (
    "With a blind spot the peer skips the nearest tokens: it does less than is asked, and does not count. "
    "Nor does Flowformer, which conserves flow, by four sums more than plain linear attention."
)
PACKAGES = (
    "local-attention",
    "routing-transformer",
    "axial-attention",
    "linear-attention-transformer",
    "x-transformers",
    "performer-pytorch",
    "titans-pytorch",
)


@dataclass(frozen=True)
class Pair:
    """A system of ours, a peer, and how to set them against each other at a length.

    `does_less` marks a peer that leaves out a part of what it is asked for, `does_more` a system of ours
    whose mathematics asks for more than the peer's; such a row is there to know, and does not count.
    `checkout` is a repository that is read from a folder (see `peers_official`), up to `longest`.
    """

    name: str
    system: str
    contest: Callable[[int], Contest]
    does_less: bool = False
    does_more: bool = False
    checkout: str = ""
    longest: int = LENGTHS[-1]


def pairs() -> list[Pair]:
    layers, flex, memory = peers_layers, peers_flex, peers_memory
    window, routing = (
        layers.sliding_window_against_local_attention,
        layers.routing_against_routing_transformer,
    )
    found = [
        Pair("softmax / x-transformers", "softmax", layers.softmax_against_x_transformers),
        Pair(
            "softmax, not causal / x-transformers", "softmax",
            partial(layers.softmax_against_x_transformers, causal=False),
        ),
        Pair(
            "gated-attention / x-transformers", "gated-attention",
            layers.gated_attention_against_x_transformers,
        ),
        Pair("sliding-window 256 / local-attention", "sliding-window", window),
        Pair(
            "sliding-window 256, not causal / local-attention", "sliding-window",
            partial(window, causal=False),
        ),
        Pair("routing-transformer / routing-transformer", "routing-transformer", routing),
        Pair(
            "routing-transformer, nearest / routing-transformer", "routing-transformer",
            partial(routing, membership="nearest"),
        ),
        Pair(
            "routing-transformer, not causal / routing-transformer", "routing-transformer",
            partial(routing, causal=False),
        ),
        Pair(
            "axial-transformer / axial-attention", "axial-transformer",
            layers.axial_against_axial_attention,
        ),
        Pair("causal / FlexAttention", "softmax", flex.causal_against_flex),
        Pair(
            "neighbourhood 13 by 13 / FlexAttention", "softmax",
            partial(flex.neighborhood_against_flex, kernel=13),
        ),
        Pair("titans / titans-pytorch", "titans-mac", memory.memory_against_titans_pytorch),
        Pair(
            "performer, not causal / performer-pytorch", "performer",
            partial(memory.features_against_performer_pytorch, causal=False),
        ),
        Pair(
            "performer / performer-pytorch", "performer",
            partial(memory.features_against_performer_pytorch, causal=True),
        ),
    ]  # fmt: skip
    for name, system, contest in (
        ("nanoTransNormer", "transnormerllm", peers_official.transnormer_against_naive),
        ("landmark-attention", "landmark-attention", peers_official.landmarks_against_official),
        ("MusicTransformer-Pytorch", "music-transformer", peers_official.relative_attention_against_port),
    ):
        about = dict(checkout=name, longest=peers_official.LONGEST)
        found.append(Pair(f"{system} / {name}, official", system, contest, **about))
    for width in (256, 1024):
        contest = partial(flex.window_against_flex, window=width)
        found.append(Pair(f"causal window {width} / FlexAttention", "softmax", contest))
    peer = "linear-attention-transformer"
    for system, causal in (("lightning-attention-2", True), ("flowformer", True), ("flowformer", False)):
        contest = partial(layers.linear_against_linear_attention_transformer, system=system, causal=causal)
        more = system == "flowformer"
        name = f"{system}{'' if causal else ', not causal'} / {peer}"
        found.append(Pair(name, system, contest, does_more=more))
        if causal:
            blind = partial(contest, blindspot=64)
            found.append(Pair(f"{system} / {peer}, blind spot 64", system, blind, does_less=True))
    return found


def measure(results: Results, chosen: Iterable[Pair], lengths: Iterable[int], *, seconds: float) -> bool:
    """Fill in what is missing, shortest lengths first; False when the time was up before the end."""
    end, quiet, chosen = monotonic() + seconds, results.quiet, list(chosen)
    for pair in chosen:
        if pair.checkout and (reason := peers_official.missing(pair.checkout)):
            print(f"{pair.name} is skipped: {reason}")
    chosen = [pair for pair in chosen if not (pair.checkout and peers_official.missing(pair.checkout))]
    for length in sorted(lengths):
        for pair in chosen:
            name = f"{pair.name} at {length}"
            its = code(pair.system)
            if length > pair.longest or results.has(name, its):
                continue
            if monotonic() > end:
                return False
            torch.manual_seed(0)
            contest = pair.contest(length)
            row, share = quiet.watch(partial(compare, contest))
            about = {"pair": pair.name, "length": length}
            about |= {"does_less": pair.does_less, "does_more": pair.does_more}
            results.put(name, row := about | row | {"quiet": share, "code": its})
            print(describe(name, row), flush=True)
    return True


def compare(contest: Contest) -> dict[str, Any]:
    """How far the outputs differ, and the ratios."""
    row: dict[str, Any] = {"same_weights": contest.same, "differences": contest.differences()}
    for phase in contest.phases():
        ours, theirs = contest.clock(phase)
        row[phase] = {
            "ours": asdict(ours), "theirs": asdict(theirs),
            "ratio": theirs.median / ours.median, "ratio_of_best": theirs.best / ours.best,
        }  # fmt: skip
    return row


def describe(name: str, row: dict[str, Any]) -> str:
    parts = [name]
    for phase in ("forward", "backward"):
        if phase in row:
            its = row[phase]
            parts.append(
                f"{phase} {its['ours']['median'] * 1e3:.2f} against {its['theirs']['median'] * 1e3:.2f} ms "
                f"({its['ratio']:.2f}, best {its['ratio_of_best']:.2f}, of {its['ours']['repetitions']})"
            )
    if row["quiet"] < ENOUGH:
        parts.append(f"beside other work: {row['quiet']:.0%} of the machine")
    if row["differences"]:
        parts.append("differences " + ", ".join(f"{k} {v:.1e}" for k, v in row["differences"].items()))
    return "; ".join(parts)


def table(results: Results) -> str:
    """Ratios by pair and length, forward / with backward, and where we are behind."""
    rows = list(results.rows.values())
    lengths = sorted({row["length"] for row in rows})
    cells = {
        (row["pair"], row["length"]): ("" if quiet(row) else "~ ")
        + " / ".join(f"{row[phase]['ratio']:.2f}" for phase in ("forward", "backward") if phase in row)
        for row in rows
    }
    lines = [
        "# Against peers", "", f"{results.about['machine']}; {_spell(results.about['versions'])}.", "",
        "The peer's median time over ours, forward / forward and backward; above 1 we are faster. "
        "Figures with a ~ were taken beside other work and count as missing.", "",
        "| ours / peer | " + " | ".join(f"{n:,}" for n in lengths) + " |",
        "| --- |" + " ---: |" * len(lengths),
    ]  # fmt: skip
    for name in dict.fromkeys(row["pair"] for row in rows):
        lines.append(f"| {name} | " + " | ".join(cells.get((name, n), "") for n in lengths) + " |")
    lost = [f"- {line}" for line in behind(results)]
    return "\n".join([*lines, "", BLIND, "", "Behind:" if lost else "Behind: nowhere.", *lost]) + "\n"


def quiet(row: dict[str, Any]) -> bool:
    """Whether the machine was left to us."""
    return row["quiet"] >= ENOUGH


def behind(results: Results) -> list[str]:
    """Where a peer was faster than we, beyond noise."""
    return [
        f"{row['pair']} at {row['length']:,}, {phase}: {row[phase]['ratio']:.2f} "
        f"(best {row[phase]['ratio_of_best']:.2f})"
        for row in results.rows.values()
        for phase in ("forward", "backward")
        if phase in row
        and quiet(row)
        and not row["does_less"]
        and not row["does_more"]
        and max(row[phase]["ratio"], row[phase]["ratio_of_best"]) < EVEN
    ]


def _spell(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words with commas; pairs whose name holds one of them")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--seconds", type=float, default=540, help="begin nothing new after so long")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is chosen")
    asked = parser.parse_args()
    words = [word.strip() for word in asked.only.split(",") if word.strip()]
    chosen = [pair for pair in pairs() if not words or any(word in pair.name for word in words)]
    lengths = [int(part) for part in asked.lengths.split(",")]
    keep_freed_memory()
    results = Results("peers", *PACKAGES)
    if asked.fresh:
        for pair in chosen:
            for length in lengths:
                results.rows.pop(f"{pair.name} at {length}", None)
    done = measure(results, chosen, lengths, seconds=asked.seconds)
    print(f"\n{table(results)}\n{results.path} and {results.write_beside(table(results))}")
    if not done:
        print("Not finished: run it again to go on.")


if __name__ == "__main__":
    main()
