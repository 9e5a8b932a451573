"""The receptive field of a grid mixer: probed by gradients and by disturbance, held to its pattern."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from regardant.contract.drawing import Case, Trials
from regardant.contract.report import Broken
from regardant.contract.subject import Inputs, Subject

EXPLICIT = {2: [(1, 1), (1, 9), (7, 13), (12, 10)], 3: [(1, 1, 1), (1, 1, 9), (3, 5, 4), (4, 6, 5)]}
"""The sizes that are always probed, by the number of axes."""


def receptive_field(trials: Trials) -> str:
    """No position sees another that the declared field does not hold."""
    subject = trials.subject

    def probe(case: Case) -> None:
        for position, seen, declared in _probed(subject, case):
            if (strange := seen & ~declared).any():
                raise Broken(
                    _said(case, position, strange, "sees", "which its receptive field does not hold")
                )
            _undisturbed(subject, case, position, declared)

    uses = trials.uses()
    trials.over(
        probe,
        uses,
        explicit=trials.cases(uses, EXPLICIT[len(subject.sizes[0])]),
        share=0.4,
        fixed={"batch": 1},
    )
    return f"nothing was seen outside the declared field in {trials.tried} configurations"


def reach(trials: Trials) -> str:
    """Every position sees all of the declared field."""
    subject = trials.subject

    def probe(case: Case) -> None:
        for position, seen, declared in _probed(subject, case):
            if (blind := declared & ~seen).any():
                raise Broken(_said(case, position, blind, "does not see", "which its receptive field holds"))

    uses = trials.uses()
    fixed = {"batch": 1, "options": ()}
    trials.over(
        probe, uses, explicit=trials.cases(uses, EXPLICIT[len(subject.sizes[0])]), share=0.4, fixed=fixed
    )
    return f"all of the declared field was seen in {trials.tried} configurations"


def _probed(subject: Subject, case: Case) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Per probed position: the positions that it sees, and those that its declared field holds."""
    layer, inputs = subject.build(case), subject.inputs(case)
    size, count = case.size, prod(case.size)
    declare = getattr(layer, "receptive_field", None)
    field = None if declare is None else declare(*size)
    heads = getattr(layer, "heads", 1)
    mask = torch.ones(count, count, dtype=torch.bool)
    if field is not None:
        mask = field.dense(count, heads=heads).reshape(-1, count, count).any(0)
    mask = mask | torch.eye(count, dtype=torch.bool)
    x = inputs.x.clone().requires_grad_()
    y = subject.forward(layer, Inputs(x)).flatten(1, -2)
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(y.shape[-1], generator=generator, dtype=torch.float64).to(y.dtype)
    middle = 0
    for side in size:
        middle = middle * side + side // 2
    corners = {0, size[-1] - 1, count - size[-1], count - 1, count // 2, middle}
    for position in sorted(corners | {count // 3, 2 * count // 3}):
        (gradient,) = torch.autograd.grad((y[0, position] * direction).sum(), x, retain_graph=True)
        seen = gradient[0].flatten(0, -2).abs().amax(-1) > 0
        yield position, seen | torch.eye(count, dtype=torch.bool)[position], mask[position]


def _undisturbed(subject: Subject, case: Case, position: int, declared: Tensor) -> None:
    """A choice among positions has no gradient; a change to all that is outside shows it."""
    layer, inputs = subject.build(case), subject.inputs(case)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(inputs.x.shape, generator=generator, dtype=torch.float64).to(inputs.x.dtype) * 10
    outside = ~declared.view(1, *case.size, 1)
    with torch.no_grad():
        y = subject.forward(layer, inputs)
        moved = subject.forward(layer, Inputs(torch.where(outside, noise, inputs.x)))
    apart = float((moved - y).flatten(1, -2)[:, position].abs().max())
    if apart > subject.tolerance * max(1.0, float(y.abs().max())):
        raise Broken(
            f"receptive field: changing what lies outside the field of {_place(position, case.size)} "
            f"moved its output by {apart:.2g}"
        )


def _said(case: Case, position: int, which: Tensor, verb: str, why: str) -> str:
    at = int(which.nonzero().flatten()[0])
    return (
        f"receptive field: the output at {_place(position, case.size)} {verb} {_place(at, case.size)}, {why} "
        f"({int(which.sum())} such positions)"
    )


def _place(position: int, size: tuple[int, ...]) -> tuple[int, ...]:
    """Where a position stands on the grid."""
    return tuple(int(along) for along in torch.unravel_index(torch.tensor(position), size))
