"""How much of full attention's gain on longer text does training with sparse attention bring?

A byte model learns windows of 64 and goes on at 256 with full attention, with LongLoRA's shifted groups
and with sink-fixed ones, a quarter of the length each. All are evaluated with full attention.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import flops
from regardant.claim.outcome import Figure, Outcome, cost, quality
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel

SHORT, LONG = Bytes(length=64), Bytes(length=256, held_out=128)
GROUP = LONG.length // 4
WAYS = {
    "full": partial(create, "softmax"),
    "shifted": partial(create, "sinklora", group=GROUP, unshifted=0.0, sinks=0),
    "sink-fixed": partial(create, "sinklora", group=GROUP),
}


def network(mixer) -> TokenModel:
    mixers = [partial(mixer, dim=64, heads=4, causal=True, position="rotary")] * 2
    return TokenModel(LONG.vocabulary, mixers, dim=64, expansion=2)


def extended(run) -> dict[str, float]:
    """The loss at the long length before going on, and after it with each attention."""
    base = run.fit(partial(network, WAYS["full"]), SHORT, steps=300, batch=32, learning_rate=2e-3)
    found = {"before": evaluate(base, LONG)}
    for name, mixer in WAYS.items():

        def made(mixer=mixer):
            model = network(mixer)
            model.load_state_dict(base.state_dict())
            return model

        model, full = run.fit(made, LONG, steps=120, batch=8, learning_rate=1e-3), network(WAYS["full"])
        full.load_state_dict(model.state_dict())
        found[name] = evaluate(full, LONG)
    gain = found["before"] - found["full"]
    return found | {f"share {name}": (found["before"] - found[name]) / gain for name in WAYS}


@torch.no_grad()
def work() -> dict[str, float]:
    """Operations of sparse attention at 2,048 tokens, as a share of all pairs' operations."""
    n, layer = 2048, create("sinklora", dim=64, heads=4, causal=True, group=512)
    q = torch.zeros(1, 4, n, 16)
    pattern = layer.visible(n, across=False, padding=None)
    spent = flops(partial(layer.attend, q, q, q, x=q, pattern=pattern))
    return {"share": spent / (4 * 4 * n * n * 16)}


def claim(context: Context) -> Outcome:
    checked = context.check("work", work)
    found = context.measure({"extension": extended})["extension"]
    ours, shifted = found["share sink-fixed"], found["share shifted"]
    return Outcome(
        setting="bytes of the standard library; 2 layers, width 64, 4 heads, rotary; 300 steps of 32 windows "
        "of 64, then 120 steps of 8 windows of 256 in which all weights learn, without adapters and without "
        "interpolated positions; the paper adapts models of 7B with adapters",
        figures=[
            Figure("share of the gain of full attention", {"sink-fixed": ours}, {"shifted": shifted}),
            Figure(
                LONG.metric_name,
                {"sink-fixed": found["sink-fixed"]},
                {name: found[name] for name in ("before", "full", "shifted")},
            ),
        ],
        criteria=[
            quality(
                "sink-fixed recovers at least as much as shifted", ours.mean - shifted.mean, at_least=0.0
            ),
            quality("sink-fixed recovers something", ours.mean, at_least=0.0),
            quality("neither recovers more than full attention", max(ours.mean, shifted.mean), at_most=1.0),
            cost("at most 35 % of the operations of full attention", checked["share"], at_most=0.35),
        ],
    )
