"""Do layers that begin as convolutions learn more from few images than plain attention, and is their lead
smaller where there are many?

Small vision transformers read digits in patches of 2×2 pixels: three gated layers before one plain one, and
four plain ones, each trained on 64, on 256 and on all images. (With a token a pixel neither leaves chance in
as many steps.)
"""

from functools import partial

import torch

from regardant.backbone.convit import ConViT
from regardant.claim.context import Context
from regardant.claim.count import parameters
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.task.digits import NoisyDigits
from regardant.task.few_examples import FewExamples
from regardant.train.fit import evaluate

EVERYTHING = NoisyDigits(noise=0.2, scale=1)
TASKS = {
    "64 images": FewExamples(EVERYTHING, examples=64),
    "256 images": FewExamples(EVERYTHING, examples=256),
    "all images": EVERYTHING,
}
GATED = {"convit": 3, "vit": 0}
BEGINNING = torch.ones(()).sigmoid().item()


def trained(task, gated):
    def unit(run):
        make = partial(
            ConViT, dim=48, heads=4, depth=4, gated=gated, expansion=2, image=8, patch=2, image_channels=1,
            classes=EVERYTHING.classes,
        )  # fmt: skip
        model = run.fit(make, task, steps=600, batch=32, learning_rate=2e-3)
        found = {"accuracy": evaluate(model, task), "parameters": parameters(model)}
        return found | (looked(model.eval()) if gated else {})

    return unit


@torch.no_grad()
def looked(model: ConViT) -> dict[str, float]:
    """Gates, and how far the first and the last gated layer look, in patches."""
    images, _ = next(iter(EVERYTHING.validation()))
    gates, distances = model.gates(), model.distances(images).mean(dim=1)
    return {
        "smallest gate": gates.min().item(),
        "first distance": distances[0].item(),
        "last distance": distances[-1].item(),
    }


def claim(context: Context) -> Outcome:
    found = context.measure(
        {
            f"{name} on {size}": trained(task, gated)
            for size, task in TASKS.items()
            for name, gated in GATED.items()
        }
    )
    gain = {
        size: found[f"convit on {size}"]["accuracy"].mean - found[f"vit on {size}"]["accuracy"].mean
        for size in TASKS
    }
    own = [f"convit on {size}" for size in TASKS]
    last = found["convit on all images"]
    counts = [each["parameters"].mean for each in found.values()]
    return Outcome(
        setting="digits at 8×8 under noise of 0.2, patches of 2; 4 layers of width 48, 600 steps of 32; "
        "64, 256 and 1,348 images; the paper trains on 5 to 100 % of ImageNet for 300 epochs",
        figures=[
            Figure.of("accuracy", found, "accuracy", ours=own),
            *(
                Figure(key, {name: found[name][key] for name in own})
                for key in ("smallest gate", "first distance", "last distance")
            ),
        ],
        criteria=[
            quality(
                "plain attention learns from all images",
                found["vit on all images"]["accuracy"].mean,
                at_least=0.5,
            ),
            quality("better than plain attention on 64 images", gain["64 images"], at_least=0.0),
            quality("better than plain attention on 256 images", gain["256 images"], at_least=0.0),
            quality(
                "the lead on 64 images is larger than on all",
                gain["64 images"] - gain["all images"],
                at_least=0.0,
            ),
            quality(
                "some head's gate falls below where it began, trained on all images",
                last["smallest gate"].mean,
                at_most=BEGINNING,
            ),
            quality(
                "the last gated layer looks farther than the first, trained on all images",
                last["last distance"].mean - last["first distance"].mean,
                at_least=0.0,
            ),
            exact("parameters within 2 % of each other", max(counts) / min(counts) - 1, at_most=0.02),
        ],
    )
