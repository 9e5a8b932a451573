"""Is a searched mixture of softmax and linear attention as good, at less work? "Neural Architecture Search on
Efficient Transformers and Beyond", 2022.

The paper, on translation and CIFAR-10: searched cosFormers are cheaper and weaker than searched softmax
networks, searched mixtures stay comparable at notably less computation. Here on trigger copy: mostly
local prediction, and now and then a sharp look back.
"""

import math
import random
from functools import partial

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.task.trigger_copy import TriggerCopy
from regardant.train.fit import evaluate
from regardant.train.nas_efficient_transformers import MixedAttentionSearch, SuperNet
from regardant.train.search_space import Architecture, Layer, SearchSpace

LENGTH = 256
TASK = TriggerCopy(symbols=16, length=LENGTH, share=0.2, distance=2, held_out=32)
KINDS = {
    "softmax": partial(create, "softmax", causal=True, position="rotary"),
    # The cosine must stay positive up to the last position, and be felt before it.
    "cosformer": partial(create, "cosformer", causal=True, position="rotary", max_length=LENGTH),
}
SPACE = SearchSpace(
    KINDS,
    vocabulary=TASK.vocabulary,
    length=LENGTH,
    depth=2,
    widths=(32, 64),
    heads=(2, 4),
    hiddens=(64, 128),
)
SHARED_STEPS, ALONE_STEPS, MEASURED, ALONE = 300, 120, 40, 8


def search(run):
    supernet = run.fit(
        lambda: SuperNet(SPACE, seed=run.seed), TASK, steps=SHARED_STEPS, batch=4, learning_rate=3e-3
    )
    finder = MixedAttentionSearch(supernet, seed=run.seed)

    def inherited(one: Architecture) -> float:
        supernet.chosen = one
        return evaluate(supernet, TASK)

    def alone(one: Architecture) -> float:
        model = run.fit(lambda: SPACE.network(one), TASK, steps=ALONE_STEPS, batch=4, learning_rate=3e-3)
        return evaluate(model, TASK)

    measured = finder.measure(inherited, MEASURED)
    seen, fresh = measured[: 3 * MEASURED // 4], measured[3 * MEASURED // 4 :]
    finder.ranker.fit(seen)
    values = {"accuracy": finder.ranker.accuracy(fresh)}

    dice = random.Random(run.seed)
    trained = [(one, alone(one)) for one in dice.sample([one for one, _ in measured], ALONE)]
    # Of the pairs, those that the ranker orders as training alone does, less the others.
    values["tau"] = 2 * finder.ranker.accuracy(trained) - 1

    winners = {kind: finder.find(attention=[kind]) for kind in KINDS}
    limit = 0.9 * SPACE.operations(winners["softmax"])
    winners["mixed"] = finder.find(limit=limit)
    for name, one in winners.items():
        values[f"loss of {name}"] = alone(one)
        values[f"work of {name}"] = SPACE.operations(one) / 1e6
        values[f"softmax layers of {name}"] = one.attentions.count("softmax")
    return values


def slopes() -> dict[str, float]:
    """How the work of the attention itself grows from 2,048 to 4,096 tokens."""
    found = {}
    for kind in KINDS:
        work = []
        for length in (2048, 4096):
            options = {} if kind == "softmax" else {"max_length": length}
            factory = partial(create, kind, causal=True, **options)
            space = SearchSpace({kind: factory}, vocabulary=4, length=length, depth=1)
            whole = space.operations(Architecture(32, (Layer(kind, 2, 64),)))
            # Projections, MLP and head are the same for every token.
            work.append(whole - 2 * length * (4 * 32 * 32 + 2 * 32 * 64 + 32 * 4))
        found[kind] = math.log2(work[1] / work[0])
    return found


def claim(context: Context) -> Outcome:
    grown = context.check("slopes", slopes)
    found = context.measure({"search": search})["search"]
    kinds = ("mixed", *KINDS)

    def table(quantity: str):
        return {kind: {quantity: found[f"{quantity} of {kind}"]} for kind in kinds}

    return Outcome(
        setting=f"trigger copy of {LENGTH} tokens; 2 layers, widths 32 and 64, 2 or 4 heads, MLPs of 64 or "
        f"128; {SHARED_STEPS} steps of the supernet, {MEASURED} architectures measured, {ALONE} trained "
        f"alone for {ALONE_STEPS}, 4 sequences a step; the paper searches translation and CIFAR-10 networks",
        figures=[
            Figure("share of held-out pairs ranked right", {"ranker": found["accuracy"]}),
            Figure("Kendall's tau with training alone", {"ranker": found["tau"]}),
            Figure.of(f"{TASK.metric_name}, winners trained alone", table("loss"), "loss", ours="mixed"),
            Figure.of("million operations a sequence", table("work"), "work", ours="mixed"),
            Figure.of("softmax layers of 2", table("softmax layers"), "softmax layers", ours="mixed"),
            Figure.once("exponent of the attention's work", grown),
        ],
        criteria=[
            quality("held-out pairs ranked right", found["accuracy"].mean, at_least=0.75),
            quality("Kendall's tau with training alone", found["tau"].mean, at_least=0.4),
            quality(
                "the mixed winner's loss is no higher than cosFormer's",
                found["loss of mixed"].mean / found["loss of cosformer"].mean,
                at_most=1.0,
            ),
            quality(
                "and at most 5 % above softmax's",
                found["loss of mixed"].mean / found["loss of softmax"].mean,
                at_most=1.05,
            ),
            cost(
                "work of the mixed winner over softmax's",
                found["work of mixed"].mean / found["work of softmax"].mean,
                at_most=1.0,
            ),
            exact("softmax's work grows as n^2", abs(grown["softmax"] - 2), at_most=0.05),
            exact("cosFormer's as n", abs(grown["cosformer"] - 1), at_most=0.05),
        ],
    )
