"""Can a gate of subspaces take the place of a whole block of 1×1 convolutions?

A small MobileNet that tells shapes apart: whole, with one of its four blocks left out, and with ULSAM in that
block's place, of four groups and of one.
"""

import torch

from regardant import create
from regardant.backbone.mobilenet import MobileNet
from regardant.claim.context import Context
from regardant.claim.count import flops, parameters
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.task.shape_classes import ShapeClasses
from regardant.train.fit import evaluate

TASK = ShapeClasses(side=20, textures=1, radius=(0.25, 0.4))
REPLACED = 2
"""The third of four blocks: it keeps width and size."""


def network(groups):
    """The network with that block as it is (None), left out (0), or a gate of so many groups."""

    def make():
        model = MobileNet(classes=TASK.classes)
        if groups == 0:
            model.blocks[REPLACED] = torch.nn.Identity()
        elif groups is not None:
            model.blocks[REPLACED] = create("ulsam", channels=64, groups=groups)
        return model

    return make


NETWORKS = {"ulsam": network(4), "one group": network(1), "whole": network(None), "left out": network(0)}


def trained(make):
    def unit(run):
        model = run.fit(make, TASK, steps=600, batch=32, learning_rate=4e-3)
        return {"accuracy": evaluate(model, TASK)}

    return unit


@torch.no_grad()
def counts() -> dict[str, float]:
    image, x = torch.zeros(1, 3, 20, 20), torch.zeros(1, 64, 5, 5)
    whole, ours = (NETWORKS[name]().eval() for name in ("whole", "ulsam"))
    gate, squeeze = create("ulsam", channels=64).eval(), create("squeeze-excitation", channels=64)
    positions = create("softmax", dim=64, heads=1)
    return {
        "parameters": parameters(ours) / parameters(whole),
        "work": flops(lambda: ours(image)) / flops(lambda: whole(image)),
        "of the gate": float(parameters(gate)),
        "of squeeze": float(parameters(squeeze)),
        "against non-local": flops(lambda: gate(x)) / flops(lambda: positions(x.flatten(2).transpose(1, 2))),
    }


def claim(context: Context) -> Outcome:
    counted = context.check("counts", counts)
    found = context.measure({name: trained(make) for name, make in NETWORKS.items()})
    ours, one, whole, left_out = (each["accuracy"] for each in found.values())
    noise = 2 * (ours.error**2 + whole.error**2) ** 0.5
    return Outcome(
        setting="8 kinds of shapes at 20×20; 4 depth-separable blocks of up to 64 channels, 600 steps of 32; "
        "the paper trains MobileNet-V1 and V2 on ImageNet and three fine-grained sets",
        figures=[
            Figure.of("accuracy", found, "accuracy", ours=("ulsam", "one group")),
            Figure.once("share of the whole network's parameters", {"ulsam": counted["parameters"]}),
            Figure.once("share of the whole network's operations", {"ulsam": counted["work"]}),
            Figure.once(
                "parameters for 64 channels",
                {"ulsam": counted["of the gate"]},
                {"squeeze": counted["of squeeze"]},
            ),
        ],
        criteria=[
            quality(
                "within two standard errors of the whole network or better",
                ours.mean - whole.mean,
                at_least=-noise,
            ),
            quality("no worse than with the block left out", ours.mean - left_out.mean, at_least=0.0),
            quality("four groups no worse than one", ours.mean - one.mean, at_least=0.0),
            cost("at least 10 % fewer parameters", counted["parameters"], at_most=0.9),
            cost("at least 10 % fewer operations", counted["work"], at_most=0.9),
            cost("under 1 % of a non-local block's operations", counted["against non-local"], at_most=0.01),
            exact(
                "5 parameters a channel and 3 a group",
                abs(counted["of the gate"] - 5 * 64 - 3 * 4),
                at_most=0,
            ),
        ],
        notes=["2 of the 5 parameters a channel and 2 of the 3 a group are batch normalisation's."],
    )
