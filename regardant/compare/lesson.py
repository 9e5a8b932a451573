"""A trial as it is done here: its task, and the small model around a system's layers."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from regardant.compare.findings import System
from regardant.compare.small_model import Flattened, SmallModel
from regardant.compare.trials import TRIALS
from regardant.compare.workload import configure, kind_of, resolve
from regardant.core.grid_mixer import GridMixer
from regardant.train.task import Task


class Lesson:
    """A trial at a level, for models of one shape."""

    def __init__(self, name: str, level: str, *, dim: int, heads: int, layers: int):
        self.trial = TRIALS[name]
        self.dim, self.heads, self.layers = dim, heads, layers
        self.task: Any = make_task(name, level)

    def model(self, system: System, expansion: float) -> SmallModel:
        """A new model; its weights are drawn from torch's generator as it stands."""
        makers = [partial(self._mixer, spec) for spec in system.specs or system.parts]
        mixers = [makers[layer % len(makers)] for layer in range(self.layers)]
        return SmallModel(mixers, dim=self.dim, expansion=expansion, **self._ends())

    @property
    def tokens(self) -> int:
        """Of a sample: positions, of an image too."""
        inputs = next(iter(self.task.validation()))[0]
        if self.trial.name == "extrapolation":
            return self.task.length
        return inputs[0, 0].numel() if "grid" in self.trial.kinds else inputs.shape[1]

    def _mixer(self, spec: str) -> nn.Module:
        constructor, kind = resolve(spec), kind_of(spec)
        supports = getattr(constructor, "supports", None)
        able = kind == "sequence" and getattr(supports, "causal", True)
        causal = able and (self.trial.causal or "grid" not in self.trial.kinds)
        shape = dict(dim=self.dim, heads=self.heads, length=self.tokens)
        config = configure(spec, causal=causal or self.trial.causal, **shape)
        mixer = constructor(**config)
        return Flattened(mixer) if "grid" in self.trial.kinds and not isinstance(mixer, GridMixer) else mixer

    def _ends(self) -> dict[str, Any]:
        """How the model takes what the task gives, and what it returns."""
        task, inputs = self.task, next(iter(self.task.validation()))[0]
        if "grid" in self.trial.kinds:
            size = tuple(inputs.shape[2:])
            return dict(features=inputs.shape[1], outputs=task.classes, read="mean", size=size)
        size = (self.tokens,) if self.trial.positions else None
        if not inputs.is_floating_point():
            return dict(vocabulary=task.vocabulary, outputs=task.vocabulary, read="each", size=size)
        outputs = getattr(task, "classes", 1)
        return dict(features=inputs.shape[-1], outputs=outputs, read="last", size=size)


def make_task(name: str, level: str) -> Task:
    """The task of a trial at a level."""
    trial = TRIALS[name]
    module, _, attribute = trial.target.partition(":")
    return getattr(import_module(f"regardant.task.{module}"), attribute)(**trial.sizes[level].task)
