"""Where texture and layout both count, do two branches that visit each other beat one, and two that do not?

Small networks on the combination of a fine and a coarse cue: patches of 4 and of 8 with cross-attention, the
same without fusion (their logits are averaged), and either branch alone, widened to as many parameters.
"""

from functools import partial

import torch

from regardant.backbone.crossvit import CrossViT, Visit
from regardant.backbone.kit.tokens import TokenAttention
from regardant.claim.context import Context
from regardant.claim.count import flops, parameters
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.task.shape_classes import TextureAndLayout
from regardant.train.fit import evaluate

TASK = TextureAndLayout()
BOTH = dict(widths=(32, 48), heads=(4, 4), depths=(1, 2), patches=(4, 8), images=(32, 32))
NETWORKS = {
    "cross-attention": BOTH,
    "no fusion": BOTH | dict(fusion="none", depths=(1, 3)),
    "small patches": dict(widths=(64,), heads=(4,), depths=(2,), patches=(4,), images=(32,), fusion="none"),
    "large patches": dict(widths=(64,), heads=(4,), depths=(2,), patches=(8,), images=(32,), fusion="none"),
}


def network(config):
    return CrossViT(**config, rounds=2, expansion=2, classes=TASK.classes)


def trained(config):
    def unit(run):
        model = run.fit(partial(network, config), TASK, steps=300, batch=32, learning_rate=2e-3)
        return {"accuracy": evaluate(model, TASK), "parameters": parameters(model)}

    return unit


@torch.no_grad()
def growth() -> dict[str, float]:
    """How operations grow with four times the patches: of a visit, and of attention among all tokens."""
    visit, everything = Visit(32, 48, 4), TokenAttention(48, 4)
    visitor = torch.zeros(1, 1, 32)

    def of_visit(patches: int) -> int:
        return flops(lambda: visit(visitor, torch.zeros(1, patches, 48)))

    def of_all(patches: int) -> int:
        """Without the projections, which are linear in any case."""
        tokens = torch.zeros(1, patches, 48)
        every = flops(lambda: everything(tokens))
        return every - flops(lambda: everything.to_qkv(tokens)) - flops(lambda: everything.to_out(tokens))

    return {"visit": of_visit(4096) / of_visit(1024), "all": of_all(4096) / of_all(1024)}


def claim(context: Context) -> Outcome:
    grown = context.check("growth", growth)
    found = context.measure({name: trained(config) for name, config in NETWORKS.items()})
    cross, late, small, large = (each["accuracy"].mean for each in found.values())
    counts = [each["parameters"].mean for each in found.values()]
    return Outcome(
        setting="4 textures and 4 layouts at 32×32, 16 classes; patches of 4 and 8, widths 32 and 48, 2 "
        "rounds, 300 steps of 32; the paper trains on ImageNet by DeiT's recipe",
        figures=[
            Figure.of("accuracy", found, "accuracy", ours="cross-attention"),
            Figure.of("parameters", found, "parameters", ours="cross-attention"),
            Figure.once(
                "operations with 4 times the patches",
                {"visits": grown["visit"]},
                {"all tokens": grown["all"]},
            ),
        ],
        criteria=[
            quality("better than small patches alone", cross - small, at_least=0.0),
            quality("better than large patches alone", cross - large, at_least=0.0),
            quality("no worse than two branches without fusion", cross - late, at_least=0.0),
            cost(
                "visits cost at most 4.2 times as much with 4 times the patches", grown["visit"], at_most=4.2
            ),
            exact("and at least 3.8 times", grown["visit"], at_least=3.8),
            exact("attention among all tokens about 16 times", grown["all"], at_least=15.0),
            exact("parameters within 5 % of each other", max(counts) / min(counts) - 1, at_most=0.05),
        ],
    )
