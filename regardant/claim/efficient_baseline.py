"""What the baselines that stand in for softmax are asked: do they cost what they say, and do they come nearer
to softmax when they are given more? Their quality in training is CAB's to measure (`regardant claim
cab-benchmark`), side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import peak_bytes
from regardant.claim.outcome import Figure, Outcome, cost, quality
from regardant.compare.growth import fit as fit_growth
from regardant.core.operations import flops
from regardant.train.fit import seeded

DIM, HEADS, LENGTHS = 64, 2, (1024, 2048, 4096, 8192)
LENGTH, DRAWS = 256, 8


def growth(name: str, *, causal: bool) -> dict[str, float]:
    """Exponents of counted operations and of the most bytes held, of a forward pass."""
    layer = create(name, dim=DIM, heads=HEADS, causal=causal)
    inputs = [torch.randn(1, n, DIM, generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    with torch.no_grad():
        operations = [flops(lambda x=x: layer(x)) for x in inputs]
        held = [peak_bytes(lambda x=x: layer(x)) for x in inputs]
    return {
        "operations": fit_growth(LENGTHS, operations).exponent,
        "bytes": fit_growth(LENGTHS, held).exponent,
    }


@torch.no_grad()
def distance(name: str, seed: int, **own) -> float:
    """How far a layer with softmax's weights is off softmax, in standard deviations of its output."""
    apart = []
    for draw in range(DRAWS):
        with seeded(1000 * seed + draw):
            dense = create("softmax", dim=DIM, heads=HEADS)
            x = torch.randn(1, LENGTH, DIM)
            layer = type(create(name, dim=DIM, heads=HEADS, **own)).from_dense(dense, **own)
        right = dense(x)
        apart.append(((layer(x) - right).std() / right.std()).item())
    return fmean(apart)


def efficient(
    context: Context, name: str, *, more: Sequence[Mapping[str, int]] = (), causal: Sequence[bool] = (False,),
    time: float = 1.05,
) -> Outcome:  # fmt: skip
    """The outcome for a baseline. `more` are settings from little to much of what it approximates with;
    none where it is no approximation of softmax."""
    grown = {
        form: context.check("causal" if form else "not causal", lambda form=form: growth(name, causal=form))
        for form in causal
    }
    said = {" ".join(f"{key} {value}" for key, value in own.items()): dict(own) for own in more}
    figures = [
        Figure.once(f"growth of {what}, exponent", {
            "causal" if form else "not causal": found[what] for form, found in grown.items()
        })
        for what in ("operations", "bytes")
    ]  # fmt: skip
    criteria = []
    for form, found in grown.items():
        which = "causal: " if form else ""
        criteria += [
            cost(f"{which}counted operations grow at most as n^{time}", found["operations"], at_most=time),
            cost(f"{which}memory grows at most as n^1.1", found["bytes"], at_most=1.1),
        ]
    if said:
        found = context.measure(
            {
                words: lambda run, own=own: {"distance": distance(name, run.seed, **own)}
                for words, own in said.items()
            }
        )
        figures.append(Figure.of("distance from softmax", found, "distance", ours=list(said)))
        least, *_, most = said
        nearer = found[most]["distance"].mean - found[least]["distance"].mean
        criteria.append(quality("with more it comes nearer to softmax", nearer, at_most=0.0))
    return Outcome(
        setting=f"a layer of width {DIM} with {HEADS} heads, {LENGTHS[0]} to {LENGTHS[-1]} tokens; distances "
        f"over {LENGTH} tokens with softmax's random weights; the claim of cab-benchmark compares training",
        figures=figures,
        criteria=criteria,
    )
