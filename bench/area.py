"""How what grid mixers and backbones take grows with the area, 32² to 256², against what their papers say.

    python -m bench.area [--only davit,cswin-cross] [--seconds 30] [--fresh]

Every registered grid mixer on square maps, and every backbone (its first variant) on square images. What is
claimed of a mixer is the growth that its class declares (`supports.time`), of a backbone growth in proportion
to the area; `CLAIMED` has those that claim something else. The exponent is that of the line through the
logarithms, of the claim as well: n log n has one between two sizes, and so has (n + 1)².

Multiply-adds are counted on shapes alone. Where attention grows faster than the area, what counts is products
of what was made from the image (scores, weights with values, transforms): products with trained weights grow
with the area in any network, and outnumber the others in images as small as these. Times are of a forward
pass of one image on one thread, all of it, and of sizes that are done within seconds. Goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from math import ceil, log, log2, prod
from time import monotonic
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.results_file import Results
from regardant.atlas import catalog, source
from regardant.compare.backbone_cost import is_backbone
from regardant.compare.clock import clock, keep_freed_memory
from regardant.compare.growth import fit
from regardant.core.operations import FUSED_ON_CPU

SIDES = (32, 64, 128, 256)
WIDTH, NARROW, HEADS = 64, 8, 2
"""Channels of the maps that are timed, and of those that are counted."""
COUNTED, TIMED = 0.1, 0.15
"""How far the exponent of counts may be off the claim, and by how much that of times may exceed it."""
LONGEST = 2.5
"""Seconds that a pass may be expected to take, to be timed."""

aten = torch.ops.aten
BY_WEIGHTS = {aten.mm, aten.addmm, aten.convolution, aten._convolution}


def _transform(x, dim, *_, out_shape=None, **__) -> int:
    """5/2 n log₂ n real operations for each Fourier transform of n real numbers, forth or back."""
    size = x if prod(x) > prod(out_shape) else out_shape
    return int(2.5 * prod(size) * log2(prod(size[axis] for axis in dim)))


TRANSFORMS = {aten._fft_r2c: _transform, aten._fft_c2r: _transform, aten._fft_c2c: _transform}


@dataclass(frozen=True)
class Claim:
    """What a paper says that grows, as a function of the image's side, up to a factor."""

    says: str
    growth: Callable[[int], float]
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """The setting that it says it of, where that is not the default."""
    products: bool = True
    """Whether it is about products of what was made from the image, or about all that is done."""

    def exponent(self, sides: Sequence[int] = SIDES) -> float:
        return fit([side**2 for side in sides], [self.growth(side) for side in sides]).exponent


def power(exponent: float, *, products: bool = True) -> Claim:
    said = {1: "n", 2: "n²"}.get(exponent, f"n^({Fraction(exponent).limit_denominator(6)})")
    return Claim(said, lambda side: side ** (2 * exponent), products=products)


def tokens(patch: int, more: int = 0) -> Claim:
    """Full attention among patches and `more` tokens beside them."""
    said = f"(n + {more})²" if more else "n²"
    return Claim(f"{said} in patches of {patch}", lambda side: (ceil(side / patch) ** 2 + more) ** 2)


def stages(says: str, depths: Sequence[int], keys: Callable[[int, int, int], float], **made_with) -> Claim:
    """Stages at strides of 4 to 32, each twice as wide as the last, of as many layers: a position sees
    `keys(stage, side of its map, side of the image)` others."""

    def growth(side: int) -> float:
        maps = [ceil(side / 2 ** (2 + stage)) for stage in range(len(depths))]
        return sum(
            depth * 2**stage * across**2 * keys(stage, across, side)
            for stage, (depth, across) in enumerate(zip(depths, maps))
        )

    return Claim(says, growth, made_with)


def _stripes(stage: int, across: int, side: int) -> float:
    return across * min((1, 2, 7, across)[stage], across)


def _routed(stage: int, across: int, side: int) -> float:
    """Keys that are read, and pairs of regions, of the S² = (n² k / 2)^(1/3) that cost least."""
    n, read = across**2, (1, 4, 16, 1)[stage]
    regions = 1 if stage == 3 else min((read / 2 * n**2) ** (1 / 3), n)
    return min(read * n / regions, n) + regions**2 / n


def _pooled(stage: int, across: int, side: int) -> float:
    return across**2 if stage == 3 else 9 + ceil(side / 32) ** 2


def _spectral(stage: int, across: int, side: int) -> float:
    """Two transforms, and in the last stages scores and their products with values."""
    return 2.5 * log2(across**2) if stage < 2 else 2 * across**2


CLAIMED: dict[str, Claim] = {
    "spectformer-gate": Claim("n log n", lambda side: side**2 * log(side**2)),
    "biformer": stages("n^(4/3), the last stage n²", (2, 2, 8, 2), _routed, regions=None),
    "convit": tokens(16),
    "crossvit": tokens(16, 1),
    "cswin": stages("stripes of 1, 2 and 7, the last stage n²", (1, 2, 21, 1), _stripes),
    "evit": tokens(16, 2),
    "spectformer": tokens(16),
    "spectformer-h": stages("n log n, the last two stages n²", (3, 4, 6, 3), _spectral),
    "transnext": stages("9 neighbours and what is pooled, the last stage n²", (2, 2, 15, 2), _pooled),
}
"""Where the claim is not the one that is declared, or growth with the area."""

NOT_ON_SHAPES = {"faster-neighborhood-attention", "pyramid"}
"""Whose plan looks at numbers, so that they are counted on real ones."""


def names() -> list[str]:
    mixers = [name for name in catalog.names("grid") if getattr(catalog.resolve(name), "rank", 2) == 2]
    return mixers + [name for name in catalog.names("backbone") if is_backbone(name)]


def is_mixer(name: str) -> bool:
    return catalog.system(name).kind == "grid"


def claim(name: str) -> Claim:
    if name in CLAIMED:
        return CLAIMED[name]
    return power(catalog.resolve(name).supports.time) if is_mixer(name) else power(1, products=False)


def make(name: str, width: int) -> nn.Module:
    """A mixer of this width, or the first variant of a backbone, in eval mode."""
    config = dict(claim(name).made_with)
    if not is_mixer(name):
        variants = catalog.resolve(name).variants
        return catalog.create(next(iter(variants)), **config).eval()
    words, _ = catalog.keywords(catalog.resolve(name))
    return catalog.create(name, dim=width, **({"heads": HEADS} if "heads" in words else {}), **config).eval()


def image(network: nn.Module, side: int, device: str) -> torch.Tensor:
    """A map of a mixer's width, or an image."""
    if hasattr(network, "image_channels"):
        return torch.randn(1, network.image_channels, side, side, device=device)
    return torch.randn(1, side, side, network.dim, device=device)


def counted(name: str, sides: Sequence[int] = SIDES) -> dict[int, int]:
    """What the claim is about, in multiply-adds, by the side of the image."""
    device, found = "cpu" if name in NOT_ON_SHAPES else "meta", {}
    with torch.device(device):
        network = make(name, NARROW)
    for side in sides:
        with (
            torch.no_grad(),
            FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU | TRANSFORMS) as counter,
        ):
            network(image(network, side, device))
        kinds = counter.get_flop_counts()["Global"]
        products = sum(count for kind, count in kinds.items() if kind not in BY_WEIGHTS)
        found[side] = (products if claim(name).products and products else sum(kinds.values())) // 2
    return found


def timed(name: str, sides: Sequence[int] = SIDES) -> dict[int, float]:
    """The shortest of a few passes by the side of the image, as far as they are done in time."""
    torch.manual_seed(0)
    network, found = make(name, WIDTH), {}
    for side in sides:
        if found:
            (before, seconds), steps = list(found.items())[-1], 2 * claim(name).exponent()
            if seconds * (side / before) ** steps > LONGEST:
                break
        given = image(network, side, "cpu")
        with torch.no_grad():
            ((_, timing),) = clock({side: partial(network, given)}, budget=0.15, least=2)
        found[side] = timing.best
    return found


def exponent(found: Mapping[int, float]) -> float:
    return fit([side**2 for side in found], list(found.values())).exponent


def row(name: str) -> dict[str, Any]:
    counts, seconds = counted(name), timed(name)
    return {
        "claim": claim(name).says, "claimed": round(claim(name).exponent(), 3),
        "products": claim(name).products, "counted": round(exponent(counts), 3),
        "claimed, of the sizes that were timed": round(claim(name).exponent(list(seconds)), 3),
        "timed": round(exponent(seconds), 3),
        "multiply-adds": {str(side): count for side, count in counts.items()},
        "seconds": {str(side): round(each, 5) for side, each in seconds.items()},
    }  # fmt: skip


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    text = (
        "# Growth with the area, 32² to 256²\n\n"
        "Exponents of n, the positions of a map or the pixels of an image: claimed, of the multiply-adds "
        "that the claim is about, of the time of a pass, and of the time between the last two sides alone, "
        "where what is the same for any image weighs least. Then the side up to which it was timed, and how "
        "long that took.\n\n"
        "| system | claim | claimed | counted | timed | last two | up to | ms |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    for name, each in rows.items():
        seconds = {int(side): took for side, took in each["seconds"].items()}
        last = fit([side**2 for side in seconds], list(seconds.values())).last
        side = max(seconds)
        text += (
            f"| {name} | {each['claim']} | {each['claimed']:.2f} | {each['counted']:.2f} "
            f"| {each['timed']:.2f} | {last:.2f} | {side} | {1e3 * seconds[side]:.0f} |\n"
        )
    return text


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--only", default="")
    asked.add_argument("--seconds", type=float, default=30.0)
    asked.add_argument("--fresh", action="store_true")
    given = asked.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    results, until = Results("area", fresh=given.fresh), monotonic() + given.seconds
    for name in given.only.split(",") if given.only else names():
        its = source.fingerprint(catalog.system(name).module)
        if results.has(name, its):
            continue
        if monotonic() > until:
            print("time is up: run again to go on")
            break
        found, quiet = results.quiet.watch(partial(row, name))
        results.put(name, found | {"code": its, "quiet": round(quiet, 3)})
        print(name, {key: value for key, value in found.items() if isinstance(value, float)}, flush=True)
    known = set(names())
    results.write_beside(table({name: each for name, each in results.rows.items() if name in known}))


if __name__ == "__main__":
    main()
