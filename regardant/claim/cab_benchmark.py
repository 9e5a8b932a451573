"""Is an efficient attention that does well in one use of attention good in the others as well?

CAB's question on four small tasks, one a use: softmax and eight efficient mixers, each in the uses that it
serves, compared by the compositional index (z-scores over the mixers, higher is better). Beside it, that all
registered mixers serve what they declare, and the length from which Performer takes less time than softmax,
seen and fitted.
"""

from functools import partial
from statistics import fmean

import torch

from regardant import create
from regardant.atlas import catalog
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, Spread, cost, exact, quality
from regardant.compare.clock import clock
from regardant.compare.yardstick import USES, Metric, compositional_index, declared, efficiency_length, served
from regardant.task.four_uses import Completion, MaskedBytes, NextBytes, Reversal
from regardant.train.cross_model import SetModel, Translator
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel

DIM, HEADS, LENGTH = 48, 4, 64
MIXERS = {
    "softmax": {},
    "local-attention": {"window": 8},
    "nystromformer": {"landmarks": 16, "kernel": 9},
    "performer": {},
    "cosformer": {"max_length": LENGTH},
    "lara": {"landmarks": 16},
    "abc": {"slots": 16},
    "long-short": {"window": 8, "chunk": 8},
    "probsparse": {"factor": 2},
}
TASKS = {
    "noncausal self": MaskedBytes(length=LENGTH),
    "causal self": NextBytes(length=LENGTH),
    "noncausal cross": Completion(seen=48, asked=16),
    "causal cross": Reversal(symbols=16, memory=16),
}
TRAINING = {
    "noncausal self": dict(steps=200, batch=16, learning_rate=4e-3),
    "causal self": dict(steps=200, batch=16, learning_rate=4e-3),
    "noncausal cross": dict(steps=200, batch=32, learning_rate=4e-3),
    "causal cross": dict(steps=250, batch=32, learning_rate=4e-3),
}
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)


def model(use: str, mixer: str):
    task, across = TASKS[use], "cross" in use
    config = dict(dim=DIM, heads=HEADS, causal=USES[use].causal, **MIXERS[mixer])
    mixers = [partial(create, mixer, context_dim=DIM if across else None, **config)] * 2
    if not across:
        return partial(TokenModel, task.vocabulary, mixers, dim=DIM, length=LENGTH, expansion=2)
    if use == "causal cross":
        return partial(Translator, task.vocabulary, mixers, dim=DIM, memory=task.memory, length=task.memory)
    return partial(SetModel, task.features, task.features, mixers, dim=DIM, asked=task.asked)


def trained(use: str, mixer: str):
    def unit(run):
        return {"score": evaluate(run.fit(model(use, mixer), TASKS[use], **TRAINING[use]), TASKS[use])}

    return unit


def uses() -> dict[str, float]:
    names = catalog.names("sequence")
    return {"mixers": len(names), "astray": sum(served(name) != declared(name) for name in names)}


def paying() -> dict[str, float]:
    """From which length on Performer, forward and causal, takes less time than softmax."""
    times: dict[str, list[float]] = {"performer": [], "softmax": []}
    with torch.no_grad():
        for length in LENGTHS:
            x = torch.randn(1, length, 64, generator=torch.Generator().manual_seed(0))
            layers = {name: create(name, dim=64, heads=4, causal=True).eval() for name in times}
            calls = {name: partial(layer, x) for name, layer in layers.items()}
            for name, timing in clock(calls, budget=0.5, least=5):
                times[name].append(timing.best)
    found = efficiency_length(LENGTHS, times["performer"], times["softmax"])
    return {"seen": found.seen, "fitted": found.fitted}


def claim(context: Context) -> Outcome:
    checked, length = context.check("uses", uses), context.check("efficiency length", paying)
    places = {use: [mixer for mixer in MIXERS if declared(mixer)[use]] for use in USES}
    found = context.measure(
        {f"{mixer} {use}": trained(use, mixer) for use, those in places.items() for mixer in those}
    )
    scores = {
        use: {mixer: found[f"{mixer} {use}"]["score"] for mixer in those} for use, those in places.items()
    }
    index = compositional_index(
        [
            Metric(use, task.name, task.metric_name, task.higher_is_better,
                   {mixer: spread.mean for mixer, spread in scores[use].items()})
            for use, task in TASKS.items()
        ]
    )  # fmt: skip
    means = {mixer: fmean(index[use][mixer] for use in USES) for mixer in places["causal cross"]}
    ahead = means["softmax"] - max(mean for mixer, mean in means.items() if mixer != "softmax")
    halves = {use: sorted(its, key=its.get, reverse=True)[: len(its) // 2] for use, its in index.items()}
    fickle = [
        mixer
        for mixer in MIXERS
        if mixer != "softmax" and mixer in halves["noncausal self"]
        and any(mixer in index[use] and mixer not in halves[use] for use in USES)
    ]  # fmt: skip
    return Outcome(
        setting=f"four tasks, width {DIM}, {HEADS} heads, 2 layers: hidden bytes and next byte (windows of "
        f"{LENGTH}, 200 steps of 16), the other half of an outline (48 points, 200 steps of 32), 16 symbols "
        "backwards from memory (250 steps of 32); the paper has seven tasks of 300 to 16,000 tokens",
        figures=[
            *(
                Figure(f"{TASKS[use].metric_name} ({use})",
                       {mixer: spread for mixer, spread in its.items() if mixer != "softmax"},
                       {"softmax": its["softmax"]})
                for use, its in scores.items()
            ),
            Figure("mean compositional index of those that serve all four uses",
                   {mixer: Spread((mean,)) for mixer, mean in means.items()}),
            Figure.once("length from which Performer pays", length),
        ],
        criteria=[
            quality("softmax has the best mean index over the four uses", ahead, at_least=0.0),
            quality("efficient mixers in the upper half at first, in the lower in another use", len(fickle),
                    at_least=1),
            cost("Performer takes less time than softmax from at most 8192 tokens on", length["seen"],
                 at_most=8192),
            cost("the fitted length is the seen one times at most 2", length["fitted"] / length["seen"],
                 at_most=2.0),
            cost("and at least 1/2", length["fitted"] / length["seen"], at_least=0.5),
            exact("mixers that do not serve what they declare", checked["astray"], at_most=0),
        ],
        notes=[
            "Changing places: " + (", ".join(fickle) or "none") + ".",
            f"{checked['mixers']:.0f} registered mixers were tried in the four uses.",
        ],
    )  # fmt: skip
