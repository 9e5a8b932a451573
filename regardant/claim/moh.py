"""Does attention with three quarters of its heads active model text as well as with all of them?

MoH against softmax at equal size on bytes of the standard library, and MoH without its balance loss.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.record import Record
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

TASK = Bytes(length=128)
SHARED, CHOSEN, HEADS = 2, 4, 8


def trained(system: str, **own):
    def unit(run):
        mixers = [partial(create, system, dim=128, heads=HEADS, causal=True, **own)] * 2
        make = partial(TokenModel, TASK.vocabulary, mixers, dim=128, length=TASK.length)
        model = run.fit(make, TASK, steps=450, batch=16, learning_rate=2e-3)
        found = {"loss": evaluate(model, TASK)}
        return found | gate_facts(model) if system == "moh" else found

    return unit


@torch.no_grad()
def gate_facts(model: TokenModel) -> dict[str, float]:
    """The share of gates that are not zero, and how unevenly the routed heads are used."""
    record = Record()
    for tokens, _ in TASK.validation():
        model(tokens, record=record)
    gates = torch.stack(record.seen["gates"]).unflatten(0, (-1, 2))
    load = (gates[..., SHARED:] > 0).double().mean(dim=(0, 2, 3))
    uneven = load.std(dim=-1, correction=0) / load.mean(dim=-1)
    return {"active": (gates > 0).double().mean().item(), "unevenness": uneven.mean().item()}


@torch.no_grad()
def from_dense() -> dict[str, float]:
    with seeded(0):
        dense = create("softmax", dim=64, heads=HEADS, causal=True).double()
        x = torch.randn(2, 33, 64, dtype=torch.float64)
    routed = type(create("moh", dim=64, heads=HEADS)).from_dense(dense)
    return {"difference": (dense(x) - routed(x)).abs().max().item()}


def claim(context: Context) -> Outcome:
    checked = context.check("from dense", from_dense)
    heads = {"shared_heads": SHARED, "top_k": CHOSEN}
    found = context.measure(
        {
            "softmax": trained("softmax"),
            "moh": trained("moh", **heads),
            "moh without balance": trained("moh", balance=0.0, **heads),
        }
    )
    moh, free = found["moh"], found["moh without balance"]
    behind = moh["loss"].mean - found["softmax"]["loss"].mean
    more_even = free["unevenness"].mean - moh["unevenness"].mean
    return Outcome(
        setting="bytes of the standard library; 2 layers, width 128, 8 heads (2 shared, 4 of 6 routed), "
        "windows of 128, 450 steps of 16 windows; the paper fine-tunes an 8B model",
        figures=[
            Figure.of(TASK.metric_name, found, "loss", ours=("moh", "moh without balance")),
            Figure.of("unevenness of head load", found, "unevenness", ours="moh"),
        ],
        criteria=[
            quality("MoH loses at most 0.02 nats to softmax", behind, at_most=0.02),
            quality("the balance loss makes the load of heads more even", more_even, at_least=0.0),
            exact("75 % of the gates are not zero", abs(moh["active"].mean - 0.75), at_most=1e-9),
            exact("zero routers, all heads chosen: softmax", checked["difference"], at_most=1e-9),
        ],
    )
