"""What a layer that is linear in its values promises: a mixing matrix that explains its output."""

from __future__ import annotations

import torch

from regardant.contract.drawing import Case, Trials
from regardant.contract.equality import off, sometimes_padded, where
from regardant.contract.report import Broken, Skip
from regardant.contract.subject import blame


def mixing_matrix(trials: Trials) -> str:
    """The matrix times the values is the output; it is lower triangular where the layer is causal."""
    subject = trials.subject
    if not subject.ours:
        raise Skip("it does not say whether it is linear in its values")
    uses = trials.uses()
    if not subject.supports.linear_in_values:
        return _refusal(trials, Case((5,), heads=subject.plain_heads, causal=uses[0].causal))
    worst = 0.0

    def probe(case: Case) -> None:
        nonlocal worst
        layer, inputs = subject.build(case), sometimes_padded(subject, case)
        with torch.no_grad():
            y = subject.forward(layer, inputs)
            with blame("mixing_matrix"):
                matrix = layer.mixing_matrix(inputs.x, inputs.context, inputs.padding)
            with blame("mix"):
                mixed = layer.mix(matrix, inputs.x, inputs.context)
        size = (len(inputs.x), case.length, inputs.keys.shape[1])
        if matrix.ndim != 4 or (matrix.shape[0], *matrix.shape[2:]) != size:
            raise Broken(
                f"the matrix is {list(matrix.shape)}, but it is [{size[0]}, heads, {size[1]}, {size[2]}]"
            )
        error = off(mixed, y)
        worst = max(worst, error)
        if not error <= subject.tolerance:
            raise Broken(f"the matrix times the values is off the output by {error:.2g}: {where(mixed, y)}")
        if case.causal and not case.across and (ahead := matrix.triu(1).abs().max()) > 0:
            raise Broken(f"the matrix of a causal layer takes {float(ahead):.2g} of a later token")
        if inputs.padding is not None and matrix.abs().amax((1, 2))[~inputs.padding].any():
            raise Broken("the matrix takes something of a padded token")

    trials.over(probe, uses, explicit=trials.cases(uses), share=0.4)
    return f"the matrix times the values gives the output within {worst:.1e} in {trials.tried} configurations"


def _refusal(trials: Trials, case: Case) -> str:
    layer, inputs = trials.subject.build(case), trials.subject.inputs(case)
    try:
        layer.mixing_matrix(inputs.x)
    except ValueError as error:
        return f"refused: {error}"
    raise Broken("it declares that it is not linear in its values, and gives a mixing matrix")
