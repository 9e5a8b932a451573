"""What an experiment is given: seeds, a way to measure that survives being killed, and its progress.

def claim(context: Context) -> Outcome:
    task = Recall(vocabulary=128, length=64)

    def train(system):
        def unit(run):
            mixers = [partial(create, system, dim=64, heads=2, causal=True)] * 2
            model = run.fit(lambda: TokenModel(128, mixers, dim=64, length=64), task, steps=1000)
            return {"accuracy": evaluate(model, task)}
        return unit

    found = context.measure({"softmax": train("softmax"), "moh": train("moh")})
    found["moh"]["accuracy"].mean
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from regardant.claim.outcome import Spread
from regardant.claim.work import Finished, Values, Work
from regardant.core.errors import require
from regardant.train import checkpoint as checkpoints
from regardant.train.fit import fit, seeded
from regardant.train.task import Task


@dataclass(frozen=True)
class Tick:
    """How far an experiment is: the unit at hand, and the share of all the work that is done."""

    unit: str
    done: float
    seconds: float
    left: float | None
    """Seconds that the rest will take at this pace, once there is a pace."""


Report = Callable[[Tick], None]


@dataclass
class Run:
    """One unit while it is measured: a variant with a seed."""

    seed: int
    context: Context
    variant: str
    trained: int = 0
    """Models so far: each has a checkpoint of its own."""

    def steps(self, full: int) -> int:
        """The number of steps at this experiment's scale."""
        return max(1, round(full * self.context.scale))

    def fit(
        self, make: Callable[[], nn.Module], task: Task, *, steps: int, batch: int = 32,
        learning_rate: float = 1e-3,
    ) -> nn.Module:  # fmt: skip
        """Make a model with this unit's seed and train it; a training that was killed goes on."""
        with seeded(self.seed):
            model = make()
        work = self.context.work
        path = work.checkpoint(self.variant, self.seed, self.trained) if checkpoints.available() else None
        self.trained += 1
        fit(
            model, task, steps=self.steps(steps), batch=batch, learning_rate=learning_rate, seed=self.seed,
            progress=lambda done, of, _: self.context.report_within(done / of), checkpoint=path,
        )  # fmt: skip
        return model


Measurement = Callable[[Run], Mapping[str, float]]


class Context:
    """An experiment on its way. `scale` below 1 shortens every training: a try-out, never recorded."""

    def __init__(
        self, *, seeds: Sequence[int], work: Work, scale: float = 1.0, report: Report | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):  # fmt: skip
        self.seeds, self.work, self.scale = tuple(seeds), work, scale
        self.seconds = 0.0
        """Spent on measuring, in this run and in those that it continues."""
        self._report, self._clock = report, clock
        self._units: list[tuple[str, int]] = []
        self._finished, self._measured_now = 0, 0
        self._began = self._spent_now = 0.0

    def measure(
        self, variants: Mapping[str, Measurement], *, seeds: Sequence[int] | None = None
    ) -> dict[str, dict[str, Spread]]:
        """Every variant with every seed: a figure's name → its spread over the seeds.

        All variants run with one seed before any runs with the next. `seeds=(0,)` is for what no seed
        changes: counts, exactness, times.
        """
        seeds = self.seeds if seeds is None else seeds
        require(len(variants) >= 1, "variants is empty, but an experiment measures at least one")
        self._units += [(variant, seed) for seed in seeds for variant in variants]
        found: dict[str, list[Values]] = {variant: [] for variant in variants}
        for seed in seeds:
            for variant, measurement in variants.items():
                found[variant].append(self._unit(variant, seed, measurement))
        return {
            variant: {name: Spread(tuple(each[name] for each in rows)) for name in rows[0]}
            for variant, rows in found.items()
        }

    def check(self, name: str, measurement: Callable[[], Mapping[str, float]]) -> Values:
        """A measurement that no seed changes, made once: counts, exactness, times."""
        found = self.measure({name: lambda run: measurement()}, seeds=(0,))
        return {key: spread.mean for key, spread in found[name].items()}

    def report_within(self, share: float) -> None:
        """How much of the unit at hand is done."""
        if self._report is None:
            return
        variant, seed = self._units[self._finished]
        spent = self._spent_now + self._clock() - self._began
        measured = self._measured_now + share
        waiting = len(self._units) - self._finished - share
        self._report(
            Tick(
                unit=f"{variant}, seed {seed}",
                done=(self._finished + share) / len(self._units),
                seconds=spent,
                left=spent / measured * waiting if measured > 0 else None,
            )
        )

    def _unit(self, variant: str, seed: int, measurement: Measurement) -> Values:
        finished = self.work.read(variant, seed)
        self._began = self._clock()
        if finished is None:
            self.report_within(0.0)
            values = {name: float(value) for name, value in measurement(Run(seed, self, variant)).items()}
            require(len(values) >= 1, f"the measurement of {variant!r} returned no figure")
            finished = Finished(values, self._clock() - self._began)
            self.work.write(variant, seed, finished)
            self.work.drop_checkpoints(variant, seed)
            self._measured_now += 1
            self._spent_now += finished.seconds
        self.seconds += finished.seconds
        self._finished += 1
        return finished.values
