"""Does a gate of a handful of parameters do what squeeze-and-excitation does?

A small residual network on noisy digits: without a gate, with squeeze-and-excitation, with ECA.
"""

from functools import partial

import torch
from torch import nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import parameters
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.task.digits import NoisyDigits
from regardant.train.fit import evaluate
from regardant.train.residual_net import GatedResidualNet

TASK = NoisyDigits(noise=0.7, scale=2)
WIDTHS = (16, 32, 64, 128)
STAGES = ((256, 3), (512, 4), (1024, 6), (2048, 3))
"""Of ResNet-50: channels and number of blocks."""


class SqueezeExcitation(nn.Module):
    """The baseline: x · σ(W₂ relu(W₁ mean(x))) with a bottleneck of channels / 16."""

    def __init__(self, channels: int, *, reduction: int = 16):
        super().__init__()
        narrow = max(channels // reduction, 1)
        self.weigh = nn.Sequential(
            nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weigh(x.mean(dim=(2, 3)))[:, :, None, None]


GATES = {
    "eca": lambda channels: create("eca-net", channels=channels),
    "none": lambda channels: nn.Identity(),
    "squeeze": SqueezeExcitation,
}


def trained(gate):
    def unit(run):
        model = run.fit(
            partial(GatedResidualNet, gate, widths=WIDTHS), TASK, steps=800, batch=64, learning_rate=3e-3
        )
        return {"accuracy": evaluate(model, TASK)}

    return unit


def counts() -> dict[str, float]:
    """Added parameters: in ResNet-50's layout by the adaptive rule and by 5 everywhere, and in ours."""

    def added(gate) -> int:
        return sum(blocks * parameters(gate(channels)) for channels, blocks in STAGES)

    ours = {name: sum(parameters(gate(channels)) for channels in WIDTHS) for name, gate in GATES.items()}
    return {
        "adaptive": added(GATES["eca"]),
        "fives": added(lambda channels: create("eca-net", channels=channels, kernel=5)),
        "share": added(GATES["eca"]) / added(SqueezeExcitation),
        **ours,
    }


def claim(context: Context) -> Outcome:
    added = context.check("counts", counts)
    found = context.measure({name: trained(gate) for name, gate in GATES.items()})
    eca, none, squeeze = (each["accuracy"] for each in found.values())
    noise = 2 * (eca.error**2 + squeeze.error**2) ** 0.5
    return Outcome(
        setting="digits at 16×16 under noise of 0.7; 4 stages of 16 to 128 channels, 800 steps of 64; the "
        "paper trains ResNets on ImageNet",
        figures=[
            Figure.of("accuracy", found, "accuracy", ours="eca"),
            Figure.once("parameters added", {"eca": added["eca"]}, {"squeeze": added["squeeze"]}),
        ],
        criteria=[
            quality("no worse than no gate", eca.mean - none.mean, at_least=0.0),
            quality("within two standard errors of squeeze", eca.mean - squeeze.mean, at_least=-noise),
            cost("in ResNet-50 under 1 % of squeeze's parameters", added["share"], at_most=0.01),
            exact("80 parameters in ResNet-50 with kernels of 5", abs(added["fives"] - 80), at_most=0),
            exact("86 by the adaptive rule", abs(added["adaptive"] - 86), at_most=0),
        ],
    )
