"""Does a gate that sees rows and columns find what channel gates cannot, and bear small batches?

A small residual network on the cued row (a mark at the left edge says which row's shape is asked): without a
gate, with squeeze-and-excitation, with ECA, with coordinate attention, with ELA; the last two also trained
on batches of 4.
"""

import torch

from regardant import create
from regardant.backbone.resnet import ResNet
from regardant.claim.context import Context
from regardant.claim.count import parameters
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.gate import insert
from regardant.task.far_reference import CuedRow
from regardant.train.fit import evaluate

TASK = CuedRow()
WIDTHS = (16, 24, 32)
GATES = {
    "ela": "ela",
    "none": None,
    "squeeze": "squeeze-excitation",
    "eca": "eca",
    "coordinate": "coordinate-attention",
}


def gated(gate):
    def make():
        model = ResNet(classes=TASK.classes, widths=WIDTHS)
        if gate is not None:
            insert(model, gate, where="stages.*.*.second.1")
        return model

    return make


def trained(gate, *, batch=32, steps=300):
    def unit(run):
        model = run.fit(gated(gate), TASK, steps=steps, batch=batch, learning_rate=4e-3)
        return {"accuracy": evaluate(model, TASK)}

    return unit


def counts() -> dict[str, float]:
    """What each variant has for 128 channels; how far rows' weights move when columns change places."""
    found = {variant: float(parameters(create("ela", channels=128, variant=variant))) for variant in "TBSL"}
    gate = create("ela", channels=128).double()
    x = torch.randn(2, 128, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        found["moved"] = (gate.maps(x)[0] - gate.maps(x.flip(3))[0]).abs().max().item()
    return found


def claim(context: Context) -> Outcome:
    counted = context.check("counts", counts)
    found = context.measure(
        {name: trained(gate) for name, gate in GATES.items()}
        | {
            "ela at batch 4": trained("ela", batch=4),
            "coordinate at batch 4": trained("coordinate-attention", batch=4),
        }
    )
    ela, _, squeeze, eca, coordinate, ela_few, coordinate_few = (each["accuracy"] for each in found.values())
    noise = 2 * (ela.error**2 + coordinate.error**2) ** 0.5
    lost, lost_by_coordinate = ela.mean - ela_few.mean, coordinate.mean - coordinate_few.mean
    expected = {"T": 7 * 128, "B": 9 * 128, "S": 42 * 128, "L": 58 * 128}
    return Outcome(
        setting="cued row at 24×24, 4 rows, 4 kinds; 3 residual blocks of 16 to 32 channels with batch "
        "normalisation of their own, 300 steps; the paper trains ResNets and MobileNetV2 on ImageNet",
        figures=[
            Figure.of("accuracy", found, "accuracy", ours=("ela", "ela at batch 4")),
            Figure.once(
                "parameters for 128 channels, ELA-T, B, S, L", {name: counted[name] for name in expected}
            ),
        ],
        criteria=[
            quality("better than squeeze-and-excitation", ela.mean - squeeze.mean, at_least=0.0),
            quality("better than ECA", ela.mean - eca.mean, at_least=0.0),
            quality(
                "within two standard errors of coordinate attention or better",
                ela.mean - coordinate.mean,
                at_least=-noise,
            ),
            quality(
                "batches of 4 cost it less than coordinate attention", lost_by_coordinate - lost, at_least=0.0
            ),
            exact(
                "kernel · channels a group · channels + 2 channels parameters",
                max(abs(counted[name] - count) for name, count in expected.items()),
                at_most=0,
            ),
            exact("a row's weight is of the row's mean alone", counted["moved"], at_most=1e-12),
        ],
    )
