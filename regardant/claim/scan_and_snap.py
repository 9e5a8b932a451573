"""Does attention scan and then snap? Tian et al., "Scan and Snap", 2023.

The paper: attention drops common tokens, grows distinct ones, and freezes near t = 2K ln(M)/η_Y before it is
one-hot. Here on their one-layer model: with sampled sequences at three decoder rates, and with contexts of
endless length, which the theorems are about, for long.
"""

from itertools import pairwise
from math import log

import torch

from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.lens.scan_and_snap import DISTINCT, follow, of_task, paper_steps
from regardant.structure.one_layer import OneLayer
from regardant.task.distinct_tokens import DistinctTokens

TASK = DistinctTokens()
RATES = (2.5, 10.0, 40.0)
STEPS, BATCH = 4000, 16
LONG = 20_000
SNAP_WITHIN = {2.5: 0.01, 10.0: 0.01, 40.0: 0.02}
"""The part of the long training by whose end more than half of the growth must have happened."""


def sampled(rate: float):
    def unit(run):
        steps = run.steps(STEPS)
        looks = sorted({0, steps, *(int(steps * 2 ** (-each / 2)) for each in range(16))})
        found = follow(
            OneLayer(TASK.vocabulary), TASK, steps=steps, decoder_rate=rate, attention_rate=1.0, looks=looks,
            batch=BATCH, generator=torch.Generator().manual_seed(run.seed),
        )  # fmt: skip
        last = found[-1].seen
        ratios = last.raised[last.roles == DISTINCT].unflatten(0, (TASK.classes, -1)).mean(dim=0)
        return {
            "common": last.common,
            "rise": max(after.seen.common - before.seen.common for before, after in pairwise(found)),
            "order": -float(ratios.diff().max()),
            "largest": last.largest,
            "entropy": last.entropy,
            **{f"raised {share}": float(ratio) for share, ratio in zip(TASK.shares, ratios)},
        }

    return unit


def endless(rate: float):
    early = int(SNAP_WITHIN[rate] * LONG)

    def measurement() -> dict[str, float]:
        looks = [*range(201), early, LONG] if early > 200 else [*range(201), LONG]
        model = OneLayer(TASK.vocabulary)
        seen = follow(model, TASK, steps=LONG, decoder_rate=rate, attention_rate=1.0, looks=looks)
        found = {look.step: look.seen.gap for look in seen}
        pace = [found[step + 1] - found[step] for step in range(200)]
        return {"share": found[early] / found[LONG], "peak": float(max(range(200), key=pace.__getitem__))}

    return measurement


def gradients() -> dict[str, float]:
    """The paper's steps against autograd's, at random weights."""
    lens, model = of_task(TASK), OneLayer(TASK.vocabulary).double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw, dtype=torch.float64))
    nexts = TASK.contexts + TASK.queries + torch.arange(TASK.classes)
    loss = torch.nn.functional.cross_entropy(model.from_counts(lens.law, lens.query), nexts)
    right = torch.autograd.grad(loss, [model.decoder, model.scores])
    found = paper_steps(model, lens.law, lens.query, nexts)
    return {"difference": max(float((a + b).abs().max()) for a, b in zip(found, right))}


def claim(context: Context) -> Outcome:
    checked = context.check("gradients", gradients)
    long = {rate: context.check(f"endless rate {rate}", endless(rate)) for rate in RATES}
    found = context.measure({f"rate {rate}": sampled(rate) for rate in RATES})
    middle = found["rate 10.0"]
    predicted = {rate: 2 * TASK.following * log(TASK.vocabulary) / rate for rate in RATES}
    entropies = [found[f"rate {rate}"]["entropy"].mean for rate in RATES]
    peaks = [long[rate]["peak"] for rate in RATES]
    return Outcome(
        setting=f"{TASK.queries} queries of {TASK.following} next tokens, {len(TASK.shares)} distinct tokens "
        f"each and {TASK.common} common ones; {STEPS} steps of {BATCH} sequences of {TASK.length} tokens, "
        f"and {LONG} steps on endless contexts; attention's rate is 1; the paper has WikiText, too",
        figures=[
            Figure.of("attention on common tokens, 0.5 at the start", found, "common", ours=tuple(found)),
            Figure.of("entropy of attention at the end, nats", found, "entropy", ours=tuple(found)),
            Figure.of("largest part of attention on one token", found, "largest", ours=tuple(found)),
            *(
                Figure.of(
                    f"attention over frequency of distinct tokens of weight {share}", found,
                    f"raised {share}", ours=tuple(found),
                )
                for share in TASK.shares
            ),
            Figure.once("part of the gap's growth early on", {f"rate {r}": long[r]["share"] for r in RATES}),
            Figure.once("step of the fastest growth", {f"rate {r}": long[r]["peak"] for r in RATES}),
            Figure.once("2 K ln M / rate", {f"rate {r}": predicted[r] for r in RATES}),
        ],
        criteria=[
            exact("the paper's gradients are autograd's", checked["difference"], at_most=1e-9),
            quality("attention on common tokens falls", middle["common"].mean, at_most=0.45),
            quality(
                "and does not rise between looks by more than 0.01", max(middle["rise"].values), at_most=0.01
            ),
            quality(
                "at rate 10 the commoner of two distinct tokens is raised more", min(middle["order"].values),
                at_least=0.0,
            ),
            quality(
                "no token takes all",
                max(max(each["largest"].values) for each in found.values()),
                at_most=0.95,
            ),
            *(
                quality(
                    f"rate {rate}: over half of {LONG} steps' growth in the first {part:.0%}",
                    long[rate]["share"], at_least=0.5,
                )
                for rate, part in SNAP_WITHIN.items()
            ),
            quality("a faster decoder snaps earlier", max(b - a for a, b in pairwise(peaks)), at_most=-1.0),
            quality(
                "at rate 2.5 growth is fastest at 2 K ln M / rate, within a factor of 2",
                abs(log(max(peaks[0], 1) / predicted[2.5])), at_most=log(2),
            ),
            quality(
                "a faster decoder leaves more entropy", min(b - a for a, b in pairwise(entropies)),
                at_least=0.0,
            ),
        ],
    )  # fmt: skip
