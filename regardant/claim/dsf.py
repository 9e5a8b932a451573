"""Attention, state space models and gated RNNs as one recurrence: are they, and what does its size do?

That each system's three ways to run agree, that softmax is the limit of ever larger states, and that S6 and
an LSTM's gate share a transition follows from the equations, and is computed. That linear attention comes to
softmax as its state grows, and that a learned normaliser improves it, is trained: on associative recall, in
networks whose first layer, a quasi-LSTM, joins a key and the value behind it, and whose second is compared.
"""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.transition import ForgetGate, SelectiveStep
from regardant.sequence.linear_attention import taylor_features
from regardant.task.recall import Recall
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

TASK = Recall(vocabulary=64, length=32, pairs=4, held_out=256)
DIM, STEPS = 64, 300
WIDTHS = {"3 states": 1, "6 states": 2, "15 states": 4, "45 states": 8}
"""Of keys and queries, whose monomials up to the second order are the states."""
MIDDLE = "6 states"


def trained(system: str, **own):
    def unit(run):
        place = partial(create, dim=DIM, heads=1, causal=True)
        make = partial(
            TokenModel, TASK.vocabulary, [partial(place, "quasi-lstm"), partial(place, system, **own)],
            dim=DIM, length=TASK.length, expansion=0,
        )  # fmt: skip
        return {"accuracy": evaluate(run.fit(make, TASK, steps=STEPS, batch=64, learning_rate=3e-3), TASK)}

    return unit


@torch.no_grad()
def modes() -> dict[str, float]:
    """How far scan, recurrence and written-out Φ are apart, over all systems and lengths, in float32."""
    worst = 0.0
    for system in ("linear-attention", "selective-state-space", "quasi-lstm", "rg-lru"):
        for length in (1, 17, 100):
            with seeded(length):
                layer, x = create(system, dim=32, heads=2, causal=True), torch.randn(2, length, 32)
            scanned = layer(x)
            for other in (layer.reference(x), layer.mix(layer.mixing_matrix(x), x)):
                worst = max(worst, (other - scanned).abs().max().item())
    return {"difference": worst}


@torch.no_grad()
def limits() -> dict[str, float]:
    """The error of Taylor features of orders 0 to 10 against softmax; S6's Λ with A = 1 against a gate's."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 32, 4, generator=generator, dtype=torch.float64)
    past = torch.ones(32, 32, dtype=torch.bool).tril()
    right = (q @ k.mT / 2).masked_fill(~past, float("-inf")).softmax(-1) @ v
    errors = []
    for order in range(0, 11, 2):  # even, so that every weight is positive
        weights = (taylor_features(q, order) @ taylor_features(k, order).mT).tril()
        errors.append((weights @ v / weights.sum(-1, keepdim=True) - right).abs().max().item())
    with seeded(0):
        step, gate, u = SelectiveStep(8, 1), ForgetGate(8, 1), torch.randn(2, 9, 8)
    gate.gate.weight.copy_(-step.gate.weight)
    gate.gate.bias.copy_(-step.gate.bias)
    return {
        "falls": max(later / earlier for earlier, later in pairwise(errors)),
        "last": errors[-1],
        "transition": (step(u) - gate(u)).abs().max().item(),
        "sigmoid": (torch.exp(-F.softplus(u)) - torch.sigmoid(-u)).abs().max().item(),
    }


def claim(context: Context) -> Outcome:
    apart, limit = context.check("modes", modes)["difference"], context.check("limits", limits)
    linear = {
        name: trained("linear-attention", features="taylor", states=width) for name, width in WIDTHS.items()
    }
    learned = {
        f"{MIDDLE}, {name}": trained(
            "linear-attention", features="taylor", states=WIDTHS[MIDDLE], normaliser=normaliser
        )
        for name, normaliser in (("learned", "exp"), ("unnormalised", "none"))
    }
    named = {name.replace(",", ""): unit for name, unit in (linear | learned).items()}
    found = context.measure(named | {"softmax": trained("softmax")})
    accuracy = {name: each["accuracy"].mean for name, each in found.items()}
    sizes = [accuracy[name] for name in WIDTHS]
    gain = accuracy[f"{MIDDLE} learned"] - accuracy[f"{MIDDLE} unnormalised"]
    return Outcome(
        setting=f"associative recall, 4 pairs among 64 tokens, length 32; a quasi-LSTM layer and one of the "
        f"compared kind, width {DIM}, 1 head, {STEPS} steps of 64; the paper recalls up to 64 pairs at 512",
        figures=[Figure.of("accuracy", found, "accuracy", ours=tuple(named))],
        criteria=[
            quality(
                "accuracy never falls by more than 0.02 from one state size to the next",
                min(larger - smaller for smaller, larger in pairwise(sizes)),
                at_least=-0.02,
            ),
            quality("the largest state gains 0.1 over the smallest", sizes[-1] - sizes[0], at_least=0.1),
            quality("it is at most 0.05 below softmax", accuracy["softmax"] - sizes[-1], at_most=0.05),
            quality("a learned normaliser is better than none", gain, at_least=0.0),
            exact("scan, recurrence and written-out matrix agree", apart, at_most=1e-5),
            exact("each two orders more bring Taylor features nearer softmax", limit["falls"], at_most=1.0),
            exact("order 10 is within 1 % of it", limit["last"], at_most=1e-2),
            exact("S6 with A = 1 is a forget gate with its sign turned", limit["transition"], at_most=1e-6),
        ],
    )
