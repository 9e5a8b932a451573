"""A trained model's measure over a distance or over the length: accuracy by how far back it must look."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.compare.lesson import Lesson
from regardant.task import needle, recall
from regardant.task.extrapolation import loss_by_length
from regardant.task.score import IGNORED, hits

BINS = 8
"""Points over a distance: bins that hold equally many questions, about."""


@torch.no_grad()
def curves(model: nn.Module, lesson: Lesson, device: str) -> list[dict[str, Any]]:
    """The curves of this trial; none where there is nothing to look at one over."""
    draw = _CURVES.get(lesson.trial.name)
    return [] if draw is None else [draw(model, lesson, device)]


def _recall(model: nn.Module, lesson: Lesson, device: str) -> dict[str, Any]:
    right, far = [], []
    for tokens, labels in lesson.task.validation():
        asked = labels != IGNORED
        found = model(tokens.to(device)).argmax(dim=-1).cpu()
        right.append((found == labels)[asked])
        far.append(recall.distances(tokens, lesson.task.pairs)[asked])
    return _over_distance(torch.cat(right), torch.cat(far))


def _needle(model: nn.Module, lesson: Lesson, device: str) -> dict[str, Any]:
    right, far = [], []
    for tokens, labels in lesson.task.validation():
        found = model(tokens.to(device))[:, -1].argmax(dim=-1).cpu()
        right.append(found == labels[:, -1])
        far.append(needle.distances(tokens))
    return _over_distance(torch.cat(right), torch.cat(far))


def _copying(model: nn.Module, lesson: Lesson, device: str) -> dict[str, Any]:
    points = []
    for distance, (tokens, labels) in lesson.task.at_each_distance():
        right, asked = hits(model(tokens.to(device)), labels.to(device))
        points.append([distance, right.item() / asked.item()])
    return {"measure": "accuracy", "over": "distance", "points": points, "trained_at": None}


def _extrapolation(model: nn.Module, lesson: Lesson, device: str) -> dict[str, Any]:
    task = lesson.task
    losses = [
        F.cross_entropy(model(tokens.to(device)).mT, targets.to(device), reduction="none").cpu()
        for tokens, targets in task.long().validation()
    ]
    found = loss_by_length(torch.cat(losses), task.length, task.times)
    points = [[length, value.item()] for length, value in found]
    return {"measure": "nats a byte", "over": "length", "points": points, "trained_at": task.length}


def _over_distance(right: Tensor, far: Tensor) -> dict[str, Any]:
    """The accuracy over the distance, in bins of about as many questions each; a bin stands at its mean."""
    order = far.argsort(stable=True)
    edges = [0]
    for part in order.tensor_split(BINS)[:-1]:
        last = edges[-1] + len(part)
        # Equal distances stay together.
        while last < len(far) and far[order[last]] == far[order[last - 1]]:
            last += 1
        if edges[-1] < last < len(far):
            edges.append(last)
    edges.append(len(far))
    points = [
        [far[order[a:b]].float().mean().item(), right[order[a:b]].float().mean().item()]
        for a, b in pairwise(edges)
    ]
    return {"measure": "accuracy", "over": "distance", "points": points, "trained_at": None}


_CURVES: dict[str, Callable[[nn.Module, Lesson, str], dict[str, Any]]] = {
    "recall": _recall,
    "needle": _needle,
    "copying": _copying,
    "extrapolation": _extrapolation,
}
