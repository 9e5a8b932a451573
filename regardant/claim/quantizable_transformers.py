"""Do heads that can do nothing keep activations free of outliers, and the model quantisable?

Clipped softmax and gated attention against softmax on trigger copy, where heads have nothing to do on
most tokens. Tiny models barely suffer from 8 bits, so weights and activations are rounded to 6.
"""

from collections.abc import Iterator
from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Criterion, Figure, Outcome, exact, quality
from regardant.task.trigger_copy import TriggerCopy
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel
from regardant.train.quantization import outliers, quantized

TASK = TriggerCopy(symbols=32, length=64, share=0.2, distance=8)
LAYERS, BITS = 3, 6
CLIPPED = partial(create, "clipped-softmax", training_length=TASK.length)
OURS = {"clipped": CLIPPED, "gated": partial(create, "gated-attention")}
BASELINE = {"softmax": partial(create, "softmax")}


def trained(mixer):
    def unit(run):
        mixers = [partial(mixer, dim=96, heads=4, causal=True)] * LAYERS
        make = partial(TokenModel, TASK.vocabulary, mixers, dim=96, length=TASK.length)
        model = run.fit(make, TASK, steps=1000, batch=16, learning_rate=1e-3)
        samples = [tokens for tokens, _ in TASK.validation()]
        seen = outliers(model, model.trunk.blocks, samples)
        loss = evaluate(model, TASK)
        with quantized(model, samples[:2], bits=BITS, keep=[model.head]):
            worse = evaluate(model, TASK) - loss
        return {"loss": loss, "largest": seen.largest, "kurtosis": seen.kurtosis, "lost": worse}

    return unit


@torch.no_grad()
def exactness() -> dict[str, float]:
    """Clipping by nothing is softmax."""
    layer = create("clipped-softmax", dim=32, heads=4, causal=True, alpha=0.0).double()
    plain = create("softmax", dim=32, heads=4, causal=True).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(2, 33, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"difference": (layer(x) - plain(x)).abs().max().item()}


def claim(context: Context) -> Outcome:
    checked = context.check("exactness", exactness)
    found = context.measure({name: trained(mixer) for name, mixer in (OURS | BASELINE).items()})
    return Outcome(
        setting="trigger copy of 64 tokens; 3 layers, width 96, 4 heads, 1000 steps of 16 sequences; the "
        "paper trains BERT-base, OPT and ViT",
        figures=[
            Figure.of(TASK.metric_name, found, "loss", ours=tuple(OURS)),
            Figure.of("largest activation behind a layer", found, "largest", ours=tuple(OURS)),
            Figure.of("kurtosis behind a layer", found, "kurtosis", ours=tuple(OURS)),
            Figure.of(f"loss added by rounding to {BITS} bits", found, "lost", ours=tuple(OURS)),
        ],
        criteria=[
            *(each for name in OURS for each in criteria(name, found[name], found["softmax"])),
            exact("clipping with α = 0, ζ = 1 is softmax", checked["difference"], at_most=1e-9),
        ],
    )


def criteria(name: str, ours, softmax) -> Iterator[Criterion]:
    ratio = ours["loss"].mean / softmax["loss"].mean
    yield quality(f"{name}: loss at most 2 % above softmax's", ratio, at_most=1.02)
    for key, words in {
        "kurtosis": "kurtosis no higher",
        "largest": "largest activation no higher",
        "lost": "no more lost by rounding",
    }.items():
        yield quality(f"{name}: {words}", ours[key].mean, at_most=softmax[key].mean)
