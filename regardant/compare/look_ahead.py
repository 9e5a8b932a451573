"""The causality probe: change later tokens, and see whether earlier outputs move."""

from __future__ import annotations

import torch
from torch import nn

from regardant.compare.lesson import Lesson
from regardant.compare.spec import Spec
from regardant.compare.workload import resolve
from regardant.contract import order
from regardant.contract.drawing import Trials
from regardant.contract.recognise import recognise
from regardant.contract.report import Broken

TOLERANCE = 1e-3
"""Of the largest output: more than rounding in single precision, less than any use of the future."""


EXAMPLES = 25
"""Configurations that the contract's probe draws."""


@torch.no_grad()
def look_ahead(model: nn.Module, lesson: Lesson) -> str | None:
    """How an output of a trained model moved with a later token; None where none did."""
    device = next(model.parameters()).device
    one, other = (lesson.task.batch(4, torch.Generator().manual_seed(seed))[0].to(device) for seed in (1, 2))
    length = one.shape[1]
    outputs = model(one)
    scale = outputs.abs().max().clamp(min=1e-6)
    for cut in sorted({1, length // 2, length - 1}):
        moved = (
            (model(torch.cat([one[:, :cut], other[:, cut:]], dim=1)) - outputs)[:, :cut].abs().amax((0, 2))
        )
        at = int(moved.argmax())
        if moved[at] > TOLERANCE * scale:
            return f"other tokens from {cut} on moved the output at {at} by {moved[at]:.2g} (of {scale:.2g})"
    return None


def causality(spec: str) -> str | None:
    """What the contract's probe of causality says against a system (without its options); None if nothing."""
    subject = recognise(resolve(spec), name=Spec.of(spec).name)
    try:
        order.causality(Trials(subject, examples=EXAMPLES, seed=0))
    except Broken as broken:
        return str(broken)
    return None
