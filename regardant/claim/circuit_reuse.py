"""Do two tasks share their circuit, and does one task's step repair the other? Merullo et al., "Circuit
Component Reuse Across Tasks in Transformer Language Models", 2023.

The paper: in GPT-2-medium about 78% of the circuits of indirect objects and coloured objects are shared,
and four heads set by hand lift coloured objects from 49.6% to 93.7%. Here on SmolLM2-135M-Instruct, with
direct effects on the logits, circuits of the 15 heads of largest effect, and heads chosen by a rule. A seed
draws the prompts.
"""

import statistics

import torch

from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.lens.circuit_reuse import CircuitReuse, direct_effects, writes_against
from regardant.lens.head_map import HeadMap
from regardant.task.circuit_prompts import coloured_objects, indirect_objects
from regardant.world.pretrained import smollm2

PROMPTS, OBJECTS, REPAIRED, DRAWS = 32, 4, 4, 20
LENS = CircuitReuse(size=15)


def measured(run) -> dict[str, float]:
    model, tokenizer = smollm2()
    draw = torch.Generator().manual_seed(run.seed)
    first = indirect_objects(tokenizer, PROMPTS, generator=draw)
    second = coloured_objects(tokenizer, PROMPTS, generator=draw, objects=OBJECTS)
    effects = [direct_effects(model, prompts) for prompts in (first, second)]
    run.context.report_within(0.4)
    overlap = LENS.overlap(*effects)
    # Those that write most against the wrong name, and as many random ones of the same layers.
    against = writes_against(model, first)
    chosen = HeadMap(-against.values).top(REPAIRED)
    drawn = []
    for _ in range(DRAWS):
        heads = [(layer, int(torch.randint(against.heads, (1,), generator=draw))) for layer, _ in chosen]
        drawn.append(heads)
    run.context.report_within(0.6)
    before, repaired, *others = LENS.accuracy(model, second, [(), chosen, *drawn])
    return {
        "first": LENS.accuracy(model, first)[0],
        "second": before,
        "repaired": repaired,
        "random": statistics.fmean(others),
        "best random": max(others),
        "shared": overlap.shared,
        "chance": overlap.chance(),
        "share": overlap.share,
        "alike": effects[0].spearman(effects[1]),
        "largest": float(effects[0].values.abs().max()),
    }


def claim(context: Context) -> Outcome:
    found = context.measure({"smollm2": measured})["smollm2"]
    rises = {name: found[name].mean - found["second"].mean for name in ("repaired", "random")}
    return Outcome(
        setting=f"up to {PROMPTS} pairs of prompts a task, {OBJECTS} objects with a solved example; effects "
        f"of 270 heads on the logits by path patching with MLPs held; circuits of {LENS.size} heads; "
        f"{REPAIRED} heads repaired, against {DRAWS} draws from their layers; the paper has GPT-2-medium and "
        "circuits found by hand",
        figures=[
            Figure("accuracy", {"indirect objects": found["first"], "coloured objects": found["second"]}),
            Figure(
                "heads that both circuits have",
                {"shared": found["shared"]},
                {"by chance (99%)": found["chance"]},
            ),
            Figure("rank correlation of the effects", {"heads": found["alike"]}),
            Figure(
                "accuracy on coloured objects, heads set to look at the wrong colours",
                {"heads that write against wrong names": found["repaired"]},
                {
                    "as it is": found["second"],
                    "random heads of their layers": found["random"],
                    "the best draw": found["best random"],
                },
            ),
        ],
        criteria=[
            exact("the model solves indirect objects", found["first"].mean, at_least=0.6),
            quality(
                "circuits share more heads than 99% of random ones",
                min(a - b for a, b in zip(found["shared"].values, found["chance"].values)), at_least=1.0,
            ),
            quality("effects of the two tasks rank alike", found["alike"].mean, at_least=0.3),
            quality(
                "the repair lifts coloured objects more than random heads do",
                rises["repaired"] - rises["random"], at_least=1e-6,
            ),
            quality("and lifts them at all", rises["repaired"], at_least=1e-6),
        ],
        notes=["the right answer is the likeliest among the options, two names or the listed colours"],
    )  # fmt: skip
