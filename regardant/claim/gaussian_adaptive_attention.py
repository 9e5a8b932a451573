"""Do weights by standing keep a linear classifier accurate where features shift, and rank features?

Features are entries of one map of size 1 × 1. On a synthetic set each class lifts its own features by a
drifting step over a drifting ground, while as many others are lifted thrice as far. On the tables of
scikit-learn nothing drifts, and the gate must not hurt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.core.errors import require
from regardant.task.held_out import validation_generator
from regardant.task.score import hits, label_loss
from regardant.train.fit import evaluate, seeded

FEATURES, CLASSES, LIFTED = 64, 4, 16
TABLES = ("breast_cancer", "wine", "digits")
NAME = "gaussian-adaptive-attention"


@dataclass(frozen=True)
class Drifting:
    """Which class's features are lifted by the smaller of two steps?"""

    name: ClassVar[str] = "drifting features"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    features: ClassVar[int] = FEATURES
    classes: ClassVar[int] = CLASSES

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (size,), generator=generator)
        step = 1 + torch.rand(size, 1, generator=generator)
        ground = 3 * torch.randn(size, 1, generator=generator)
        x = ground + 0.3 * torch.randn(size, FEATURES, generator=generator)
        own = torch.arange(FEATURES) // LIFTED == labels[:, None]
        rank = (
            torch.rand(size, FEATURES, generator=generator).masked_fill(own, 2).argsort(dim=1).argsort(dim=1)
        )
        x = x + step * own + 3 * step * (rank < LIFTED)
        return x, labels

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = validation_generator()
        for _ in range(8):
            yield self.batch(128, generator)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


@cache
def read(table: str) -> tuple[Tensor, Tensor]:
    """A standardised table of scikit-learn and its labels, in an order of our own."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{table}")()
    x, labels = torch.from_numpy(data.data).float(), torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    return x[order], labels[order]


@dataclass(frozen=True)
class Table:
    """Rows of a table; a quarter is for validation."""

    table: str
    name: ClassVar[str] = "table"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.table in TABLES, f"table is {self.table!r}, but it is one of {', '.join(TABLES)}")

    @property
    def features(self) -> int:
        return read(self.table)[0].shape[1]

    @property
    def classes(self) -> int:
        return int(read(self.table)[1].max()) + 1

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, labels = read(self.table)
        chosen = torch.randint(len(x) // 4, len(x), (size,), generator=generator)
        return x[chosen], labels[chosen]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, labels = read(self.table)
        yield x[: len(x) // 4], labels[: len(x) // 4]

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


class SqueezeExcitation(nn.Module):
    """x · σ(W₂ relu(W₁ x)) with a bottleneck of an eighth."""

    def __init__(self, channels: int):
        super().__init__()
        narrow = max(channels // 8, 1)
        self.weigh = nn.Sequential(
            nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.flatten(1))[:, :, None, None]


class GatedLinear(nn.Module):
    """A linear classifier of the features, and of what a gate makes of them."""

    def __init__(self, task, gate=None):
        super().__init__()
        self.gate = None if gate is None else gate(task.features)
        self.norm = nn.LayerNorm(task.features)
        self.head = nn.Linear(task.features, task.classes)

    def forward(self, x: Tensor, *, record=None) -> Tensor:
        gated = 0 if self.gate is None else self.norm(self.gate(x[:, :, None, None]).flatten(1))
        return self.head(x + gated)


GATES = {
    "gaussian": lambda channels: create(NAME, channels=channels, runs=1),
    "linear": None,
    "squeeze": SqueezeExcitation,
}


def drifting(gate):
    def unit(run):
        task = Drifting()
        model = run.fit(partial(GatedLinear, task, gate), task, steps=1500, batch=128, learning_rate=1e-2)
        return {"drifting": evaluate(model, task)}

    return unit


def tabular(gate):
    def unit(run):
        found = {}
        for table in TABLES:
            task = Table(table)
            model = run.fit(partial(GatedLinear, task, gate), task, steps=400, batch=64, learning_rate=1e-2)
            found[table] = evaluate(model, task)
            if table == "digits" and gate is GATES["gaussian"]:
                found |= without_the_best(model, task, seed=run.seed)
        return found

    return unit


@torch.no_grad()
def without_the_best(model: GatedLinear, task: Table, *, seed: int) -> dict[str, float]:
    """The accuracy on digits without the fifth of the pixels that weigh most, and without any fifth."""
    x, labels = next(iter(task.validation()))
    count = task.features // 5

    def lost(chosen: Tensor) -> float:
        kept = torch.ones(task.features)
        kept[chosen] = 0
        return (model(x * kept).argmax(-1) == labels).double().mean().item()

    generator = torch.Generator().manual_seed(seed)
    at_random = [lost(torch.randperm(task.features, generator=generator)[:count]) for _ in range(20)]
    best = model.gate.importance(x[:, :, None, None]).topk(count).indices
    return {"without the best": lost(best), "without any": sum(at_random) / 20}


@torch.no_grad()
def exactness() -> dict[str, float]:
    with seeded(0):
        gate, x = create(NAME, channels=30).double(), torch.randn(4, 30, 5, 7, dtype=torch.float64)
    return {"difference": (gate(x) - gate.reference(x)).abs().max().item()}


def claim(context: Context) -> Outcome:
    checked = context.check("exactness", exactness)
    found = context.measure({name: drifting(gate) for name, gate in GATES.items()})
    tables = context.measure({f"{name} on tables": tabular(gate) for name, gate in GATES.items()})
    ours, linear = tables["gaussian on tables"], tables["linear on tables"]
    mean = {name: each["drifting"].mean for name, each in found.items()}
    worst = min(ours[table].mean - linear[table].mean for table in TABLES)
    return Outcome(
        setting=f"{FEATURES} drifting features in {CLASSES} classes, 1500 steps of 128, and three tables of "
        "scikit-learn, 400 steps of 64; a linear classifier on x + norm(gate(x)); the paper gates features "
        "of frozen encoders of speech, text and images",
        figures=[
            Figure.of("accuracy on drifting features", found, "drifting", ours="gaussian"),
            *(
                Figure.of(f"accuracy on {table}", tables, table, ours="gaussian on tables")
                for table in TABLES
            ),
            Figure(
                "accuracy on digits without a fifth of the pixels",
                {"the most important": ours["without the best"]},
                {"any": ours["without any"]},
            ),
        ],
        criteria=[
            quality(
                "5 points above linear where features drift", mean["gaussian"] - mean["linear"], at_least=0.05
            ),
            quality("on tables at most a point below linear", worst, at_least=-0.01),
            quality(
                "losing the most important features hurts more than losing any",
                ours["without any"].mean - ours["without the best"].mean,
                at_least=0.0,
            ),
            exact("the product in logarithms is the product", checked["difference"], at_most=1e-9),
        ],
    )
