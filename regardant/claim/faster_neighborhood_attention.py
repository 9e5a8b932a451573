"""Are tiles with halos faster and smaller than gathering every query's neighbours?

Neighbourhood attention is exact however it is computed; the paper's claim is its cost. The baseline
copies the neighbours' keys and values for every query, as the naive form does.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops, peak_bytes
from regardant.claim.outcome import Figure, Outcome, cost, exact
from regardant.compare.clock import clock
from regardant.compare.growth import fit as fit_growth
from regardant.core.grid_pattern import Neighborhood

DIM, HEADS, SIDE = 64, 2, 64


class Gathered:
    """The naive form, on the weights of a layer."""

    def __init__(self, layer, side: int):
        self.layer = layer
        near = Neighborhood((layer.grid_pattern.kernel[0],) * 2).on(side, side)
        rows = [near.block(torch.tensor([i]), torch.arange(side**2))[0] for i in range(side**2)]
        self.neighbours = torch.stack([row.nonzero()[:, 0] for row in rows])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1, 2)
        q, k, v = self.layer.project(flat)
        near_k, near_v = k[:, :, self.neighbours], v[:, :, self.neighbours]
        logits = (near_k @ q[..., None])[..., 0] * q.shape[-1] ** -0.5
        heads = (logits.softmax(dim=-1)[..., None, :] @ near_v)[..., 0, :]
        return self.layer.merge(heads, x=flat).unflatten(1, x.shape[1:3])


def made(kernel: int):
    torch.manual_seed(kernel)
    return create("faster-neighborhood-attention", dim=DIM, heads=HEADS, kernel=kernel)


@torch.no_grad()
def exactness() -> dict[str, float]:
    """Against the masked dense form, on maps of one, two and three axes."""
    worst, generator = 0.0, torch.Generator().manual_seed(0)
    for size in ((23,), (9, 11), (5, 6, 7)):
        for kernel, dilation, causal in ((3, 1, False), (5, 1, True), (3, 2, False), (1, 3, True)):
            own = {"kernel": kernel, "dilation": min(dilation, min(size) // kernel), "is_causal": causal}
            layer = create("faster-neighborhood-attention", dim=16, heads=2, rank=len(size), **own).double()
            x = torch.randn(2, *size, 16, generator=generator, dtype=torch.float64)
            worst = max(worst, (layer(x) - layer.reference(x)).abs().max().item())
    return {"difference": worst}


@torch.no_grad()
def memory() -> dict[str, float]:
    """Peak bytes by kernel, and the growth of the counted work over maps of 32² to 128²."""
    x = torch.zeros(1, SIDE, SIDE, DIM)
    layers = {kernel: made(kernel) for kernel in (5, 7, 13)}
    naive = Gathered(layers[13], SIDE)
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
    x = torch.randn(1, SIDE, SIDE, DIM, generator=torch.Generator().manual_seed(0))
    tiles = {f"tiles {kernel}": made(kernel) for kernel in (7, 13)}
    naive = {f"gather {layer.grid_pattern.kernel[0]}": Gathered(layer, SIDE) for layer in tiles.values()}
    calls = {name: partial(form, x) for name, form in (tiles | naive).items()}
    return {name: timing.median for name, timing in clock(calls, budget=3.0)}


def claim(context: Context) -> Outcome:
    checked = context.check("exactness", exactness)
    held, spent = context.check("memory", memory), context.check("times", times)
    faster = {kernel: spent[f"gather {kernel}"] / spent[f"tiles {kernel}"] for kernel in (7, 13)}
    smaller, flat = held["gather 13"] / held["tiles 13"], held["tiles 13"] / held["tiles 5"]

    def side_by_side(quantity: str, found: dict[str, float], kernel: int, unit: float) -> Figure:
        ours, naive = found[f"tiles {kernel}"] / unit, found[f"gather {kernel}"] / unit
        return Figure.once(f"{quantity}, kernel {kernel}", {"tiles": ours}, {"gather": naive})

    return Outcome(
        setting=f"a map of {SIDE}×{SIDE}, width {DIM}, {HEADS} heads, forward in float32 on the CPU; the "
        "paper measures GPU kernels",
        figures=[
            side_by_side("milliseconds", spent, 7, 1e-3),
            side_by_side("milliseconds", spent, 13, 1e-3),
            side_by_side("peak megabytes", held, 13, 1e6),
        ],
        criteria=[
            cost("tiles are faster than gathering, kernel 7", faster[7], at_least=1.0),
            cost("tiles are faster than gathering, kernel 13", faster[13], at_least=1.0),
            cost("gathering holds at least 3 times as much, kernel 13", smaller, at_least=3.0),
            cost("peak memory at kernel 13 is at most 1.5 times that at 5", flat, at_most=1.5),
            cost("operations grow at most as n^1.1 in positions", held["exponent"], at_most=1.1),
            exact("equal to the masked dense form", checked["difference"], at_most=1e-9),
        ],
    )
