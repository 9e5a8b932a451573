"""Are tiles with halos faster and smaller than gathering every query's neighbours?

Neighbourhood attention is exact however it is computed; the paper's claim is its cost, in the fused form
and in the unfused one, on one, two and three axes. The baseline copies the neighbours' keys and values for
every query, as the naive form does.
"""

from functools import partial
from math import prod

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops, peak_bytes
from regardant.claim.outcome import Figure, Outcome, cost, exact
from regardant.compare.clock import clock
from regardant.compare.growth import fit as fit_growth
from regardant.core.grid_pattern import Neighborhood

DIM, HEADS, SIDE = 64, 2, 64
MAPS = {
    "kernel 7": ((SIDE, SIDE), 7),
    "kernel 13": ((SIDE, SIDE), 13),
    "one axis": ((SIDE * SIDE,), 31),
    "three axes": ((16, 16, 16), 5),
}
"""Sizes and kernels; all of them hold 4,096 positions."""


class Gathered:
    """The naive form, on the weights of a layer."""

    def __init__(self, layer, *size: int):
        self.layer = layer
        near = Neighborhood(layer.grid_pattern.kernel).on(*size)
        self.neighbours = near.candidates(torch.arange(prod(size)), prod(size))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1, -2)
        q, k, v = self.layer.project(flat)
        near_k, near_v = k[:, :, self.neighbours], v[:, :, self.neighbours]
        logits = (near_k @ q[..., None])[..., 0] * q.shape[-1] ** -0.5
        heads = (logits.softmax(dim=-1)[..., None, :] @ near_v)[..., 0, :]
        return self.layer.merge(heads, x=flat).unflatten(1, x.shape[1:-1])


def made(kernel: int, rank: int = 2, form: str = "fused"):
    torch.manual_seed(kernel)
    own = {"kernel": kernel, "rank": rank, "form": form}
    return create("faster-neighborhood-attention", dim=DIM, heads=HEADS, **own)


@torch.no_grad()
def exactness() -> dict[str, float]:
    """Against the masked dense form, on maps of one, two and three axes."""
    worst, generator = 0.0, torch.Generator().manual_seed(0)
    for size in ((23,), (9, 11), (5, 6, 7)):
        for kernel, dilation, causal in ((3, 1, False), (5, 1, True), (3, 2, False), (1, 3, True)):
            own = {"kernel": kernel, "dilation": min(dilation, min(size) // kernel), "is_causal": causal}
            x = torch.randn(2, *size, 16, generator=generator, dtype=torch.float64)
            for form in ("fused", "unfused"):
                own |= {"form": form, "rank": len(size)}
                layer = create("faster-neighborhood-attention", dim=16, heads=2, **own).double()
                worst = max(worst, (layer(x) - layer.reference(x)).abs().max().item())
    return {"difference": worst}


@torch.no_grad()
def memory() -> dict[str, float]:
    """Peak bytes by kernel, and the growth of the counted work over maps of 32² to 128²."""
    x = torch.zeros(1, SIDE, SIDE, DIM)
    layers = {kernel: made(kernel) for kernel in (5, 7, 13)}
    naive = Gathered(layers[13], SIDE, SIDE)
    counted = [flops(partial(layers[7], torch.zeros(1, side, side, DIM))) for side in (32, 64, 128)]
    return {
        "tiles 5": peak_bytes(partial(layers[5], x)),
        "tiles 13": peak_bytes(partial(layers[13], x)),
        "gather 13": peak_bytes(partial(naive, x)),
        "exponent": fit_growth([32**2, 64**2, 128**2], counted).exponent,
    }


@torch.no_grad()
def times() -> dict[str, float]:
    """Seconds a forward pass."""
    generator, calls = torch.Generator().manual_seed(0), {}
    for name, (size, kernel) in MAPS.items():
        x = torch.randn(1, *size, DIM, generator=generator)
        forms = {form: made(kernel, len(size), form) for form in ("fused", "unfused")}
        forms["gather"] = Gathered(forms["fused"], *size)
        calls |= {f"{form} {name}": partial(layer, x) for form, layer in forms.items()}
    return {name: timing.median for name, timing in clock(calls, budget=1.0)}


@torch.no_grad()
def waste() -> dict[str, float]:
    """The unfused form's counted operations over those that tiles and halos make by the paper's formula."""
    worst = 0.0
    for size, kernel in MAPS.values():
        layer, n = made(kernel, len(size), "unfused"), prod(size)
        q = torch.zeros(1, HEADS, n, DIM // HEADS)
        spent = flops(partial(layer.attend, q, q, q, x=q, pattern=layer.receptive_field(*size)))
        side = max(kernel, 4)
        boxes = prod(-(-length // side) for length in size)
        by_formula = boxes * (side * (side + kernel - 1)) ** len(size) * 4 * DIM
        worst = max(worst, abs(spent / by_formula - 1))
    return {"off": worst}


def claim(context: Context) -> Outcome:
    checked = context.check("exactness", exactness)
    held, spent = context.check("memory", memory), context.check("times", times)
    counted = context.check("waste", waste)
    faster = {name: spent[f"gather {name}"] / spent[f"fused {name}"] for name in MAPS}
    unfused = min(spent[f"gather {name}"] / spent[f"unfused {name}"] for name in MAPS)
    smaller, flat = held["gather 13"] / held["tiles 13"], held["tiles 13"] / held["tiles 5"]

    def milliseconds(name: str) -> Figure:
        found = {form: spent[f"{form} {name}"] * 1e3 for form in ("fused", "unfused", "gather")}
        gather = {"gather": found.pop("gather")}
        return Figure.once(f"milliseconds, {name}", found, gather)

    megabytes = [{form: held[f"{form} 13"] / 1e6} for form in ("tiles", "gather")]
    return Outcome(
        setting=f"4,096 positions on one, two and three axes, width {DIM}, {HEADS} heads, forward in float32 "
        "on the CPU; the paper measures GPU kernels",
        figures=[
            *map(milliseconds, MAPS),
            Figure.once("peak megabytes, kernel 13", *megabytes),
        ],
        criteria=[
            cost("tiles are faster than gathering, kernel 7", faster["kernel 7"], at_least=1.0),
            cost("tiles are faster than gathering, kernel 13", faster["kernel 13"], at_least=1.0),
            cost("tiles are faster than gathering, one axis", faster["one axis"], at_least=1.0),
            cost("tiles are faster than gathering, three axes", faster["three axes"], at_least=1.0),
            cost("the unfused form is faster than gathering everywhere", unfused, at_least=1.0),
            cost("gathering holds at least 3 times as much, kernel 13", smaller, at_least=3.0),
            cost("peak memory at kernel 13 is at most 1.5 times that at 5", flat, at_most=1.5),
            cost("operations grow at most as n^1.1 in positions", held["exponent"], at_most=1.1),
            exact("operations are within 10 % of the formula of halos", counted["off"], at_most=0.1),
            exact("equal to the masked dense form", checked["difference"], at_most=1e-9),
        ],
    )
