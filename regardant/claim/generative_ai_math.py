"""Three proposals without published figures: do they do what they are for?

A harmonic bias on rotary positions, trained at 128 bytes and tested at 512. A cache that grows coarser with
age against one of 4 bits throughout, and blocks drawn by distance against as many drawn anywhere, both put
into the trained rotary model without further training.
"""

import math
from functools import partial

import torch

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.sequence.probabilistic_blocks import DrawnBlocks
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate, seeded
from regardant.train.model import TokenModel

TRAINED, LONGER = Bytes(length=128), Bytes(length=512, held_out=64)
DIM, HEADS, LAYERS = 96, 4, 2
BLOCK, RATE = 8, 1.5
CACHES = {"staircase": {"bits": (8, 4, 2)}, "uniform cache": {"bits": (4,)}}
CACHE = {"group": 16, "recent": 16}
DRAWS = 4


def even_rate(blocks: int) -> float:
    """The one probability with which as many blocks are drawn as with those of the distances."""
    far = torch.arange(1, blocks)
    odds = DrawnBlocks(BLOCK, RATE, "harmonic", 0).odds(far)
    return float((odds * (blocks - far)).sum() / (blocks - far).sum())


def trained(run, system: str, **own) -> TokenModel:
    mixers = [partial(create, system, dim=DIM, heads=HEADS, causal=True, **own)] * LAYERS
    make = partial(TokenModel, TRAINED.vocabulary, mixers, dim=DIM)
    return run.fit(make, TRAINED, steps=250, batch=16, learning_rate=2e-3)


def exchanged(model: TokenModel, system: str, **own) -> float:
    """The loss with other attention in every layer, around the same weights."""
    kind = type(create(system, dim=8, heads=2))
    before = [block.mixer for block in model.trunk.blocks]
    for block in model.trunk.blocks:
        block.mixer = kind.from_dense(block.mixer, **own).eval()
    loss = evaluate(model, TRAINED)
    for block, mixer in zip(model.trunk.blocks, before):
        block.mixer = mixer
    return loss


def rotary(run) -> dict[str, float]:
    model = trained(run, "softmax", position="rotary")
    found = {"loss": evaluate(model, TRAINED), "longer": evaluate(model, LONGER)}
    for name, own in CACHES.items():
        found[name] = exchanged(model, "staircase-cache", **own, **CACHE) - found["loss"]
    for chance, rate in (("harmonic", RATE), ("uniform", even_rate(TRAINED.length // BLOCK))):
        losses = [
            exchanged(model, "probabilistic-blocks", size=BLOCK, rate=rate, chance=chance, seed=seed)
            for seed in range(DRAWS)
        ]
        found[chance] = sum(losses) / DRAWS - found["loss"]
    return found


def harmonic(run) -> dict[str, float]:
    model = trained(run, "harmonic-attention")
    return {"loss": evaluate(model, TRAINED), "longer": evaluate(model, LONGER)}


def bits() -> dict[str, float]:
    layers = {
        name: create("staircase-cache", dim=DIM, heads=HEADS, **own, **CACHE) for name, own in CACHES.items()
    }
    return {name: layer.mean_bits(TRAINED.length) for name, layer in layers.items()}


def pairs() -> dict[str, float]:
    """How the number of drawn blocks grows with the number of blocks."""
    counts = []
    for blocks in (128, 2048):
        at = torch.arange(blocks)
        counts.append(int(DrawnBlocks(BLOCK, RATE, "harmonic", 0).drawn(at[:, None], at[None]).tril().sum()))
    return {"exponent": math.log(counts[1] / counts[0], 16)}


@torch.no_grad()
def exactness() -> dict[str, float]:
    """What decoding gives from packed codes, against a whole pass."""
    with seeded(0):
        layer = create("staircase-cache", dim=32, heads=2, group=8, recent=16).double()
        x = torch.randn(1, 120, 32, dtype=torch.float64)
    whole, state, worst = layer(x), layer.start(1), 0.0
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state)
        worst = max(worst, (y - whole[:, t]).abs().max().item())
    return {"difference": worst}


def claim(context: Context) -> Outcome:
    checked, drawn, held = (context.check(each.__name__, each) for each in (exactness, pairs, bits))
    found = context.measure({"harmonic bias": harmonic, "rotary alone": rotary})
    theirs = found["rotary alone"]
    return Outcome(
        setting=f"bytes of the standard library; {LAYERS} layers of width {DIM}, {HEADS} heads, windows of "
        f"{TRAINED.length}, 250 steps of 16; blocks of {BLOCK}, groups of 16; the paper has no experiment",
        figures=[
            Figure.of(f"loss at {TRAINED.length} bytes", found, "loss", ours="harmonic bias"),
            Figure.of(f"loss at {LONGER.length} bytes", found, "longer", ours="harmonic bias"),
            Figure(
                "loss added by a coarser cache",
                {"staircase": theirs["staircase"]},
                {"4 bits": theirs["uniform cache"]},
            ),
            Figure.once(
                "bits a cached number", {"staircase": held["staircase"]}, {"4 bits": held["uniform cache"]}
            ),
            Figure(
                "loss added by seeing drawn blocks only",
                {"by distance": theirs["harmonic"]},
                {"anywhere": theirs["uniform"]},
            ),
        ],
        criteria=[
            quality(
                "at 4 times the length, less loss than rotary positions alone",
                found["harmonic bias"]["longer"].mean - theirs["longer"].mean,
                at_most=0.0,
            ),
            quality(
                "the staircase adds less loss than 4 bits throughout",
                theirs["staircase"].mean - theirs["uniform cache"].mean,
                at_most=0.0,
            ),
            quality(
                "blocks drawn by distance add less loss than blocks drawn anywhere",
                theirs["harmonic"].mean - theirs["uniform"].mean,
                at_most=0.0,
            ),
            cost(
                "the staircase takes no more bits than 4 throughout",
                held["staircase"] - held["uniform cache"],
                at_most=0.0,
            ),
            cost("drawn pairs grow at most as n^1.35", drawn["exponent"], at_most=1.35),
            exact("decoding from codes is the whole pass", checked["difference"], at_most=1e-9),
        ],
        notes=["the paper's sub-word encoder and its cross-entropy search are not among these"],
    )
