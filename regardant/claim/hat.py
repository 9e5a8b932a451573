"""Do channels and overlapping windows beside shifted windows restore better, from more of the image?

Images enlarged twice: HAT, the same network without its branch of channels and its overlapping attention, its
MLPs widened to as many parameters, and bicubic interpolation.
"""

from functools import partial

import torch

from regardant.backbone.hat import HAT
from regardant.claim.context import Context
from regardant.claim.count import parameters
from regardant.claim.outcome import Figure, Outcome, cost, quality
from regardant.task.super_resolution import SuperResolution, bicubic
from regardant.train.fit import evaluate

TASK = SuperResolution(side=16, periods=(3.0, 8.0))
SHAPE = dict(
    dim=24, groups=2, blocks=2, heads=2, scale=2, window=8, squeeze=6, features=16, drop_path=0.0
)  # fmt: skip
MODELS = {
    "hat": partial(HAT, **SHAPE),
    "windows alone": partial(HAT, **SHAPE, channels=False, overlap=0.0, expansion=7),
}


def trained(make):
    def unit(run):
        model = run.fit(make, TASK, steps=400, batch=8, learning_rate=3e-3)
        return {"decibels": evaluate(model, TASK), "support": support(model)}

    return unit


def support(model) -> float:
    """The share of the pixels of 32×32 whose gradient to the middle of the output is a thousandth of the
    largest at least, the mean of four images."""
    images = TASK.batch(16, torch.Generator().manual_seed(0))[0]
    images = images.unflatten(0, (4, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    images.requires_grad_()
    (felt,) = torch.autograd.grad(model(images)[:, :, 30:34, 30:34].abs().sum(), images)
    felt = felt.abs().amax(dim=1).flatten(1)
    return float((felt >= felt.amax(dim=1, keepdim=True) / 1000).double().mean())


def plain() -> dict[str, float]:
    """Bicubic interpolation; and how many parameters the two networks differ by."""
    one, other = (parameters(make()) for make in MODELS.values())
    return {"decibels": evaluate(Bicubic(), TASK), "apart": abs(one - other) / one}


class Bicubic(torch.nn.Module):
    def forward(self, images):
        return bicubic(images)


def claim(context: Context) -> Outcome:
    base = context.check("bicubic", plain)
    found = context.measure({name: trained(make) for name, make in MODELS.items()})
    hat, windows = found.values()
    return Outcome(
        setting="patterns at 16×16 enlarged twice; two groups of two blocks of width 24, windows of 8, "
        "400 steps of 8 images; the paper trains on ImageNet and DF2K",
        figures=[
            Figure.of(TASK.metric_name, found, "decibels", ours=("hat",)),
            Figure.of("share of the image that a pixel hears of", found, "support", ours=("hat",)),
        ],
        criteria=[
            quality(
                "HAT restores better than windows alone",
                hat["decibels"].mean - windows["decibels"].mean, at_least=0.0,
            ),
            quality(
                "HAT restores better than bicubic interpolation by half a decibel",
                hat["decibels"].mean - base["decibels"], at_least=0.5,
            ),
            quality(
                "a pixel of HAT hears of more of the image",
                hat["support"].mean - windows["support"].mean, at_least=0.0,
            ),
            cost("both have as many parameters, to 5 %", base["apart"], at_most=0.05),
        ],
        notes=[f"Bicubic interpolation: {base['decibels']:.2f} decibels."],
    )  # fmt: skip
