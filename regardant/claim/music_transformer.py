"""Do relative logits beat absolute positions, do they carry over to twice the length, at linear memory?

Bytes of the standard library, and trigger copy: what follows a trigger is the symbol that stood 8 positions
before it. Trained at 64 tokens, tested at 64 and 128, against absolute sinusoids.
"""

import math
from functools import partial

import torch
from torch import Tensor

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import peak_bytes
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.core.pattern import Causal
from regardant.core.position import Position
from regardant.core.relative_logits import RelativeLogits
from regardant.task.bytes import Bytes
from regardant.task.trigger_copy import TriggerCopy
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel

TEXT = Bytes(length=128)
COPY, LONGER = TriggerCopy(length=64), TriggerCopy(length=128)
DIM, LAYERS, HEADS = 96, 2, 4


class Sinusoids(Position):
    """Sines and cosines of the position, added to the input (Vaswani et al., 2017)."""

    def embed(self, x: Tensor, offset: int = 0) -> Tensor:
        rate = 1e4 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
        angle = torch.arange(offset, offset + x.shape[1])[:, None] * rate
        return x + torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(x)


def relative():
    return create("music-transformer", dim=DIM, heads=HEADS, causal=True, max_distance=64)


def absolute():
    return create("softmax", dim=DIM, heads=HEADS, causal=True, position=Sinusoids())


def trained(mixer, task, steps):
    def unit(run):
        make = partial(TokenModel, task.vocabulary, [mixer] * LAYERS, dim=DIM)
        model = run.fit(make, task, steps=steps, batch=16, learning_rate=2e-3)
        found = {"loss": evaluate(model, task)}
        return found | {"longer": evaluate(model, LONGER)} if task is COPY else found

    return unit


@torch.no_grad()
def skewing() -> dict[str, float]:
    """Against E[j - i] written out."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 512, 16, dtype=torch.float64, generator=generator)
    table = torch.randn(4, 512, 16, dtype=torch.float64, generator=generator)
    at = torch.arange(512)
    skewed = RelativeLogits(q, table, origin=511).block(at, at)
    row = (at - at[:, None] + 511).clamp(0, 511)
    apart = skewed - torch.einsum("bhid,hijd->bhij", q, table[:, row])
    return {"difference": (apart * Causal().dense(512)).abs().max().item()}


def memory() -> dict[str, float]:
    """The exponent of the peak memory over softmax's, forward and with backward."""
    found = {}
    for backward in (False, True):
        extra = []
        for n in (1024, 4096):
            held = []
            for name, own in (("music-transformer", {"max_distance": n}), ("softmax", {})):
                layer, x = create(name, dim=64, heads=4, causal=True, **own), torch.ones(1, n, 64)

                def call(layer=layer, x=x, backward=backward):
                    with torch.set_grad_enabled(backward):
                        y = layer(x)
                    if backward:
                        y.sum().backward()

                held.append(peak_bytes(call))
            extra.append(held[0] - held[1])
        found["both ways" if backward else "forward"] = math.log(extra[1] / extra[0], 4)
    return found


def claim(context: Context) -> Outcome:
    checked = context.check("skewing", skewing)
    grows = context.check("memory", memory)
    text = context.measure(
        {"relative": trained(relative, TEXT, 250), "absolute": trained(absolute, TEXT, 250)}
    )
    copy = context.measure(
        {
            "relative on copies": trained(relative, COPY, 450),
            "absolute on copies": trained(absolute, COPY, 450),
        }
    )
    ours, theirs = copy["relative on copies"], copy["absolute on copies"]
    return Outcome(
        setting=f"2 layers of width {DIM}, 4 heads, distances to 63; bytes, windows of 128, 250 steps of 16; "
        "trigger copy at 64 tokens, 450 steps of 16, tested at 64 and 128; the paper trains on chorales and "
        "piano performances",
        figures=[
            Figure.of(TEXT.metric_name, text, "loss", ours="relative"),
            Figure.of(f"{COPY.metric_name}, 64 tokens", copy, "loss", ours="relative on copies"),
            Figure.of(f"{COPY.metric_name}, 128 tokens", copy, "longer", ours="relative on copies"),
            Figure.once("exponent of the memory over softmax", grows),
        ],
        criteria=[
            quality(
                "on text a lower loss than with sinusoids",
                text["relative"]["loss"].mean - text["absolute"]["loss"].mean,
                at_most=0.0,
            ),
            quality(
                "at twice the length, at most 2 % more loss on copies",
                ours["longer"].mean / ours["loss"].mean,
                at_most=1.02,
            ),
            quality(
                "at twice the length, less loss on copies than with sinusoids",
                ours["longer"].mean - theirs["longer"].mean,
                at_most=0.0,
            ),
            cost("memory over softmax, forward: exponent", grows["forward"], at_most=1.15),
            cost("memory over softmax, both ways: exponent", grows["both ways"], at_most=1.15),
            exact("skewing equals gathering", checked["difference"], at_most=1e-9),
        ],
    )
