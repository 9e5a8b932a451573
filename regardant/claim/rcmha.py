"""Of convolution and relative distances, are both together the best of four on text, and in what memory?

Next-byte accuracy on the standard library of attention with neither, with either and with both, at equal
width; where there are no distances, positions are learned.
"""

from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import peak_bytes
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

TASK = Bytes(length=128)
DIM, HEADS, LAYERS = 96, 4, 2
MODELS = {
    "both": {"kernel": 3, "relative": True},
    "convolution": {"kernel": 3, "relative": False},
    "distances": {"kernel": None, "relative": True},
    "neither": {"kernel": None, "relative": False},
}
NAMES = {"both": "rcmha", "convolution": "mdha", "distances": "rmha", "neither": "mha"}


def mixers(name: str):
    own = {"max_distance": TASK.length} if MODELS[name]["relative"] else {}
    return [partial(create, "rcmha", dim=DIM, heads=HEADS, causal=True, **MODELS[name], **own)] * LAYERS


def model_of(name: str) -> TokenModel:
    length = None if MODELS[name]["relative"] else TASK.length
    return TokenModel(TASK.vocabulary, mixers(name), dim=DIM, length=length)


def trained(name: str):
    def unit(run):
        model = run.fit(partial(model_of, name), TASK, steps=300, batch=16, learning_rate=2e-3)
        return {"accuracy": accuracy(model), "loss": evaluate(model, TASK)}

    return unit


@torch.no_grad()
def accuracy(model: TokenModel) -> float:
    hits = [(model(tokens).argmax(-1) == after).double().mean() for tokens, after in TASK.validation()]
    return torch.stack(hits).mean().item()


def one_step(model: TokenModel, tokens: torch.Tensor) -> None:
    model(tokens).sum().backward()


def memory() -> dict[str, float]:
    """Megabytes that a training step holds at most."""
    found = {}
    for name in MODELS:
        with seeded(0):
            model = model_of(name)
        tokens = torch.zeros(16, TASK.length, dtype=torch.long)
        found[NAMES[name]] = peak_bytes(partial(one_step, model, tokens)) / 2**20
    return found


@torch.no_grad()
def exactness() -> dict[str, float]:
    with seeded(0):
        layer = create("rcmha", dim=64, heads=4, causal=True, max_distance=20).double()
        x = torch.randn(2, 65, 64, dtype=torch.float64)
    return {"difference": (layer(x) - layer.reference(x)).abs().max().item()}


def claim(context: Context) -> Outcome:
    checked, held = context.check("exactness", exactness), context.check("memory", memory)
    found = context.measure({NAMES[name]: trained(name) for name in MODELS})
    mean = {name: each["accuracy"].mean for name, each in found.items()}
    return Outcome(
        setting=f"bytes of the standard library; {LAYERS} layers of width {DIM}, {HEADS} heads, windows of "
        f"{TASK.length}, 300 steps of 16; the paper trains language models of its own size",
        figures=[
            Figure.of("next-byte accuracy", found, "accuracy", ours="rcmha"),
            Figure.of(TASK.metric_name, found, "loss", ours="rcmha"),
            Figure.once(
                "peak megabytes of a training step",
                {"rcmha": held["rcmha"]},
                {name: value for name, value in held.items() if name != "rcmha"},
            ),
        ],
        criteria=[
            quality("no less accurate than MHA", mean["rcmha"] - mean["mha"], at_least=0.0),
            quality("no less accurate than MDHA", mean["rcmha"] - mean["mdha"], at_least=0.0),
            quality("at most 0.3 points below RMHA", mean["rcmha"] - mean["rmha"], at_least=-0.003),
            exact("skewed and at once equals written out", checked["difference"], at_most=1e-9),
        ],
        notes=[
            "the paper's advantage in memory over RMHA cannot come at equal width: filters add activations"
        ],
    )
