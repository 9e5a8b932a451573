"""Does a network without attention, of planes through a few pairs of tokens, come near one with attention?

Bytes of the standard library, four networks of equal size that differ in what mixes tokens: softmax
attention, Grassmann flows, the mean of the same earlier tokens through the same gate, and nothing.
"""

import math

import torch
from torch import Tensor, nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.contract.meter import Meter, exponent
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate, seeded

TASK = Bytes(length=64)
DIM, REDUCED, LAYERS, OFFSETS = 64, 16, 2, (1, 2, 4, 8, 12, 16)
PARAMETERS = 50_000
"""Of a layer: the feed-forward part takes what the mixer leaves."""


class MeanOfOffsets(nn.Module):
    """The mixer of Grassmann flows, with a projection of the mean partner in the place of the planes."""

    def __init__(self):
        super().__init__()
        self.to_flow, self.to_gate = nn.Linear(DIM, DIM), nn.Linear(2 * DIM, DIM)
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        back = [nn.functional.pad(x, (0, 0, offset, 0))[:, : x.shape[1]] for offset in OFFSETS]
        count = torch.tensor([sum(offset <= t for offset in OFFSETS) for t in range(x.shape[1])])[:, None]
        flow = self.to_flow(sum(back) / count.clamp(min=1)) * (count > 0)
        gate = torch.sigmoid(self.to_gate(torch.cat([x, flow], dim=-1)))
        return self.norm(gate * x + (1 - gate) * flow)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm = create("softmax", dim=DIM, heads=4, causal=True), nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x))


MIXERS = {
    "softmax": Attention,
    "grassmann flows": lambda: create("grassmann-flows", dim=DIM, reduced=REDUCED, offsets=OFFSETS),
    "mean of offsets": MeanOfOffsets,
    "no mixer": nn.Identity,
}


class Layer(nn.Module):
    """The paper's: the mixer, then a feed-forward part under its own residual and norm."""

    def __init__(self, mixer: nn.Module):
        super().__init__()
        taken = sum(parameter.numel() for parameter in mixer.parameters())
        hidden = (PARAMETERS - taken) // (2 * DIM)
        self.mixer, self.norm = mixer, nn.LayerNorm(DIM)
        self.feed = nn.Sequential(nn.Linear(DIM, hidden), nn.GELU(), nn.Linear(hidden, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(x)
        return self.norm(x + self.feed(x))


class Network(nn.Module):
    def __init__(self, mixer: str):
        super().__init__()
        self.embedding = nn.Embedding(TASK.vocabulary, DIM)
        self.positions = nn.Parameter(0.02 * torch.randn(TASK.length, DIM))
        self.layers = nn.Sequential(*(Layer(MIXERS[mixer]()) for _ in range(LAYERS)))
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor, *, record=None) -> Tensor:
        x = self.layers(self.embedding(tokens) + self.positions)
        return x @ self.embedding.weight.mT


def trained(mixer: str):
    def unit(run):
        model = run.fit(lambda: Network(mixer), TASK, steps=500, batch=16, learning_rate=3e-3)
        size = sum(parameter.numel() for parameter in model.parameters())
        return {"loss": evaluate(model, TASK), "parameters": size}

    return unit


def counted() -> dict[str, float]:
    """How the work of forward grows, and how far back a token of two layers sees."""
    with seeded(0):
        layers = nn.Sequential(*(MIXERS["grassmann flows"]() for _ in range(LAYERS)))
        x = torch.randn(1, 8192, DIM)
    work = []
    for length in (512, 8192):
        with torch.no_grad(), (meter := Meter()):
            layers(x[:, :length])
        work.append(meter.work)
    near = x[:, :100].requires_grad_()
    slope = torch.autograd.grad(layers(near)[:, -1, 0].sum(), near)[0].abs().amax((0, 2))
    reach = 99 - int(slope.nonzero().min())
    return {"growth": exponent(*work, 16), "reach": reach}


def claim(context: Context) -> Outcome:
    fixed = context.check("growth and reach", counted)
    found = context.measure({mixer: trained(mixer) for mixer in MIXERS})
    loss = {mixer: figures["loss"].mean for mixer, figures in found.items()}
    ratio = math.exp(loss["grassmann flows"] - loss["softmax"])
    return Outcome(
        setting="bytes of the standard library in windows of 64; 2 layers of width 64, 16 reduced "
        "dimensions, the paper's offsets, learned positions, tied embeddings, 500 steps of 16 windows; the "
        "paper has 6 and 12 layers of width 256 on Wikitext-2",
        figures=[
            Figure.of(TASK.metric_name, found, "loss", ours="grassmann flows"),
            Figure.of("parameters", found, "parameters", ours="grassmann flows"),
            Figure.once("perplexity as a multiple of softmax's", {"grassmann flows": ratio}),
        ],
        criteria=[
            quality(
                "planes are better than means of the same tokens",
                loss["mean of offsets"] - loss["grassmann flows"], at_least=0.0,
            ),
            quality(
                "means are better than no mixer", loss["no mixer"] - loss["mean of offsets"], at_least=0.0
            ),
            quality("at most 15 % more perplexity than softmax", ratio, at_most=1.15),
            cost("the work of forward grows at most as n^1.05", fixed["growth"], at_most=1.05),
            exact("two layers see 32 tokens back and no further", abs(fixed["reach"] - 32), at_most=0.0),
        ],
        notes=["What lies further back than layers times the largest offset cannot be recalled at all."],
    )  # fmt: skip
