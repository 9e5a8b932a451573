"""Is a language model without softmax, TransNormerLLM, as good as one with it, and what does its decay do?

The whole network with the paper's decays, with the authors' code's, and with none, beside a network of equal
size with softmax and rotary positions, on bytes of text; then windows sixteen times as long as in training.
And, with nothing to train: the recurrence that decoding uses against the parallel form, and the length at
which the other recurrence, with its negative powers of the decay, overflows.
"""

from functools import partial

import torch

from regardant import create
from regardant.backbone.transnormerllm import TransNormerLLM
from regardant.claim.context import Context
from regardant.claim.count import parameters
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.decayed_linear import decayed_linear_reference, decayed_linear_step
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel

TASK = Bytes(length=64)
LONGER = Bytes(length=16 * TASK.length, held_out=16)
DIM, HEADS, LAYERS, STEPS = 64, 4, 2, 400
HIDDEN = 149
"""With five square matrices in its attention and three in its channel mixer, as many weights as softmax's."""


def without_softmax(decay: str):
    return partial(
        TransNormerLLM, TASK.vocabulary, DIM, heads=HEADS, layers=LAYERS, hidden=HIDDEN, decay=decay
    )


def with_softmax():
    mixers = [partial(create, "softmax", dim=DIM, heads=HEADS, causal=True, position="rotary")] * LAYERS
    return partial(TokenModel, TASK.vocabulary, mixers, dim=DIM)


def trained(make):
    def unit(run):
        model = run.fit(make, TASK, steps=STEPS, batch=16, learning_rate=2e-3)
        return {
            "loss": evaluate(model, TASK), "long": evaluate(model, LONGER), "weights": parameters(model),
        }  # fmt: skip

    return unit


@torch.no_grad()
def recurrences() -> dict[str, float]:
    """The safe one against the parallel form, and where λ^(-t) is infinite in float32."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 256, 16, generator=generator) for _ in range(3))
    rates = torch.tensor([-7.0, -0.5])
    state, outs = torch.zeros(1, 2, 16, 16), []
    for t in range(256):
        out, state = decayed_linear_step(q[:, :, t], k[:, :, t], v[:, :, t], state, rates)
        outs.append(out)
    plain = decayed_linear_reference(q, k, v, rates)
    apart = (torch.stack(outs, dim=2) - plain).abs().max() / plain.abs().max()
    unsafe = torch.exp(-rates[:, None] * torch.arange(256)).isinf().int().argmax(dim=1)
    return {"difference": apart.item(), "strong": unsafe[0].item(), "weak": unsafe[1].item()}


def claim(context: Context) -> Outcome:
    sums = context.check("recurrences", recurrences)
    variants = {f"decay {name}": trained(without_softmax(name)) for name in ("linear", "alibi", "none")}
    found = context.measure(variants | {"softmax": trained(with_softmax())})
    paper, none, softmax = found["decay linear"], found["decay none"], found["softmax"]
    stretch = {name: each["long"].mean / each["loss"].mean for name, each in found.items()}
    more = abs(paper["weights"].mean / softmax["weights"].mean - 1)
    return Outcome(
        setting=f"bytes of the standard library; {LAYERS} layers, width {DIM}, {HEADS} heads, {STEPS} steps "
        "of 16 windows of 64; the paper trains 385M to 7B parameters",
        figures=[
            Figure.of("validation loss, nats a byte, windows of 64", found, "loss", ours=tuple(variants)),
            Figure.of("the same, windows of 1024", found, "long", ours=tuple(variants)),
        ],
        criteria=[
            quality("a decay lowers the loss", paper["loss"].mean - none["loss"].mean, at_most=0.0),
            quality(
                "the loss is at most 8 % above softmax's",
                paper["loss"].mean / softmax["loss"].mean,
                at_most=1.08,
            ),
            quality(
                "at 16 times the length the loss rises by less than softmax's",
                stretch["decay linear"] / stretch["softmax"],
                at_most=1.0,
            ),
            exact("sizes differ by at most 2 %", more, at_most=0.02),
            exact("the safe recurrence is the parallel form", sums["difference"], at_most=1e-4),
            exact("λ = e^-7: the unsafe one overflows at token 13", abs(sums["strong"] - 13), at_most=0),
            exact("λ = e^-0.5: at token 178", abs(sums["weak"] - 178), at_most=0),
        ],
    )
