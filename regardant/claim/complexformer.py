"""Does a phase map of each head's own model text better than rotary positions alone?

Bytes of the standard library at equal size but for the maps, which start as rotary positions or at random.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import parameters
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

TASK = Bytes(length=128)
DIM, HEADS, LAYERS = 96, 4, 2
OURS = ("from rotary", "from random gains")


def trained(system: str, **own):
    def unit(run):
        mixers = [partial(create, system, dim=DIM, heads=HEADS, causal=True, **own)] * LAYERS
        make = partial(TokenModel, TASK.vocabulary, mixers, dim=DIM)
        model = run.fit(make, TASK, steps=400, batch=16, learning_rate=2e-3)
        found = {"loss": evaluate(model, TASK)}
        if system == "complexformer":
            gains = torch.stack([block.mixer.gain.detach() for block in model.trunk.blocks])
            found["drift"] = (gains - 1).abs().mean().item()
        return found

    return unit


@torch.no_grad()
def exactness() -> dict[str, float]:
    """Against a rotary layer, against the score with its five axes, and what is added in width 512."""
    with seeded(0):
        rotary = create("softmax", dim=64, heads=4, causal=True, position="rotary").double()
        random = create("complexformer", dim=64, heads=4, causal=True, initial="normal").double()
        x = torch.randn(2, 65, 64, dtype=torch.float64)
    ours = type(random).from_dense(rotary)
    sizes = [parameters(create(name, dim=512, heads=8)) for name in ("complexformer", "softmax")]
    return {
        "rotary": (ours(x) - rotary(x)).abs().max().item(),
        "five axes": (random(x) - random.reference(x)).abs().max().item(),
        "added": sizes[0] / sizes[1] - 1,
    }


def claim(context: Context) -> Outcome:
    checked = context.check("exactness", exactness)
    found = context.measure(
        {
            "from rotary": trained("complexformer"),
            "from random gains": trained("complexformer", initial="normal"),
            "rotary": trained("softmax", position="rotary"),
        }
    )
    behind = found["from rotary"]["loss"].mean - found["rotary"]["loss"].mean
    return Outcome(
        setting=f"bytes of the standard library; {LAYERS} layers of width {DIM}, {HEADS} heads, windows of "
        f"{TASK.length}, 400 steps of 16; logits divided by √d; the paper trains language models",
        figures=[
            Figure.of(TASK.metric_name, found, "loss", ours=OURS),
            Figure.of("mean distance of a gain from 1", found, "drift", ours=OURS),
        ],
        criteria=[
            quality("at most 0.01 nats above rotary positions", behind, at_most=0.01),
            cost("under 0.2 % more parameters in a layer of width 512", checked["added"], at_most=0.002),
            exact("δ = 1, b = 0 are rotary positions", checked["rotary"], at_most=1e-9),
            exact("factorised equals the five axes", checked["five axes"], at_most=1e-9),
        ],
    )
