"""The attention of a trained model on one input: how much each query of a head takes of each key."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regardant.compare.lesson import Lesson
from regardant.compare.small_model import Flattened

LONGEST = 32
"""Tokens of the input: maps are to be looked at."""

HEADS = 4
"""Of a layer; the first ones."""

DIGITS = 3


@torch.no_grad()
def attention_maps(model: nn.Module, lesson: Lesson, device: str) -> dict[str, Any]:
    """The maps of every layer and head for one validation sample, the same for all systems; and
    the reason, where a layer has none."""
    inputs = next(iter(lesson.task.validation()))[0][:1]
    if inputs.ndim == 4:
        return {"maps": [], "no_maps": "maps of images are not drawn"}
    if lesson.trial.positions or lesson.trial.name == "extrapolation":
        inputs = inputs[:, :LONGEST]
    tokens = _spell(inputs[0], lesson)
    heard: list[tuple[int, nn.Module, Tensor]] = []
    hooks = [
        block.mixer.register_forward_pre_hook(
            lambda mixer, given, layer=layer: heard.append((layer, mixer, given[0]))
        )
        for layer, block in enumerate(model.trunk.blocks)
    ]
    try:
        model(inputs.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    found, reasons = [], []
    for layer, mixer, x in heard:
        try:
            mixer = mixer.mixer if isinstance(mixer, Flattened) else mixer
            matrix = mixer.mixing_matrix(x)[0, :HEADS].double().cpu()
        except (ValueError, AttributeError) as error:
            reasons.append(f"layer {layer}: {error}")
            continue
        found += [
            {"layer": layer, "head": head, "matrix": _short(rows), "tokens": tokens}
            for head, rows in enumerate(matrix)
            if rows.isfinite().all()
        ]
    return {"maps": found} | ({"no_maps": "; ".join(dict.fromkeys(reasons))} if reasons else {})


def _short(rows: Tensor) -> list[list[float]]:
    return [[round(value, DIGITS) or 0 for value in row] for row in rows.tolist()]


def _spell(sample: Tensor, lesson: Lesson) -> list[str]:
    """A name for every token of the input."""
    if sample.is_floating_point():
        return [f"{place}" for place in range(len(sample))]
    if lesson.trial.name in ("bytes", "extrapolation"):
        return [chr(value) if 32 <= value < 127 else f"\\x{value:02x}" for value in sample.tolist()]
    return [str(value) for value in sample.tolist()]
