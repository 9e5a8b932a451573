"""One model of a comparison: trained with a seed, measured, looked at, and probed for looking ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from regardant.compare.curves import curves
from regardant.compare.findings import System, TaskPlan
from regardant.compare.lesson import Lesson
from regardant.compare.look_ahead import look_ahead
from regardant.compare.maps import attention_maps
from regardant.compare.small_model import EXPANSION, expansion_for, parameters
from regardant.compare.trials import LEARNING_RATE
from regardant.core.errors import require
from regardant.train import checkpoint as checkpoints
from regardant.train.fit import evaluate, fit, seeded

POINTS = 40
"""Of a learning curve."""

KEPT_EVERY = 30.0
"""Seconds between two checkpoints, about."""


TIMED = 3
"""Steps that a survey times."""


class Refused(ValueError):
    """The system does not take what it would be given here: a reason in a sentence, and no failure."""


def train(
    system: System, task: TaskPlan, lesson: Lesson, *, seed: int, device: str, maps: bool,
    checkpoint: Path | None = None, step_seconds: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """What is found of one model; raises `Refused`, or `ValueError` where the training came apart."""
    model = _model(system, task, lesson, seed, device)
    steps = task.steps
    kept = checkpoint if checkpoint is not None and checkpoints.available() else None
    every = max(1, min(steps, round(KEPT_EVERY / max(step_seconds, 1e-4))))
    began = perf_counter()
    fitted = fit(
        model, lesson.task, steps=steps, batch=task.batch, learning_rate=LEARNING_RATE, seed=seed,
        device=device, checkpoint=kept if every < steps else None, checkpoint_every=every,
    )  # fmt: skip
    seconds = perf_counter() - began
    value = evaluate(model, lesson.task, device=device)
    require(math.isfinite(value), f"its {task.measure} is {value} after {steps} steps")
    ahead = look_ahead(model, lesson) if lesson.trial.causal else None
    require(ahead is None, f"it sees the future: {ahead}")
    return {
        "value": value,
        "parameters": parameters(model),
        "tokens": steps * task.batch * task.length,
        "seconds": seconds,
        "learning": learning_curve(fitted.losses, task.batch * task.length),
        "curves": [_finite(curve) for curve in curves(model, lesson, device)],
        "probe": None,
        **(attention_maps(model, lesson, device) if maps else {"maps": []}),
    }


def survey(system: System, lesson: Lesson, *, batch: int, device: str) -> dict[str, Any]:
    """What a model of this system takes: parameters, at least and with the usual width, and a step's time."""
    with seeded(0):
        narrow, usual = (lesson.model(system, width) for width in (1 / lesson.dim, EXPANSION))
    how = dict(batch=batch, learning_rate=LEARNING_RATE, seed=0, device=device)
    fit(usual, lesson.task, steps=1, **how)
    began = perf_counter()
    fit(usual, lesson.task, steps=TIMED, **how)
    step = (perf_counter() - began) / TIMED
    began = perf_counter()
    evaluate(usual, lesson.task, device=device)
    evaluation = perf_counter() - began
    counts = {"least": parameters(narrow), "usual": parameters(usual), "tokens": lesson.tokens}
    return counts | {"step": step, "evaluation": evaluation}


def _model(system: System, task: TaskPlan, lesson: Lesson, seed: int, device: str) -> nn.Module:
    """The model with its parameters matched, seen to take the task's samples."""
    try:
        with seeded(0):
            width = expansion_for(
                lambda width: lesson.model(system, width), lesson.dim, task.parameters, name=system.name
            )
        with seeded(seed):
            model = lesson.model(system, width)
        model.to(device)
        inputs = lesson.task.batch(2, torch.Generator().manual_seed(seed))[0]
        with torch.no_grad():
            model(inputs.to(device))
    except ValueError as error:
        raise Refused(str(error)) from error
    return model


def learning_curve(losses: Sequence[float], tokens: int) -> list[list[float]]:
    """Tokens seen, and the mean loss of the steps up to there, at most `POINTS` times."""
    edges = sorted({round(len(losses) * at / POINTS) for at in range(POINTS + 1)})
    return [
        [last * tokens, round(sum(losses[first:last]) / (last - first), 5)] for first, last in pairwise(edges)
    ]


def _finite(curve: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: such points are left out."""
    return dict(curve) | {"points": [point for point in curve["points"] if all(map(math.isfinite, point))]}
