"""What must come out equal: the fast way and the plain one, their gradients, and half precision."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from regardant.contract.drawing import Case, Trials
from regardant.contract.report import Broken, Skip
from regardant.contract.subject import Inputs, Subject
from regardant.core.checks import computes_in

HALF_ERROR = 5e-2
"""The error that half precision may make, in standard deviations of the output (root mean square)."""


def off(found: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the magnitude of what is right (at least 1)."""
    if found.numel() == 0:
        return 0.0
    if not found.isfinite().all():
        return float("inf")
    return float((found - right).abs().max() / right.abs().max().clamp(min=1))


def where(found: Tensor, right: Tensor) -> str:
    """The index at which two tensors differ most, and both values."""
    apart = torch.where(found.isfinite(), (found - right).abs(), float("inf"))
    index = tuple(int(i) for i in torch.unravel_index(apart.argmax(), apart.shape))
    return f"{float(found[index]):.6g} instead of {float(right[index]):.6g} at {list(index)}"


def shape(trials: Trials) -> str:
    """The output has the input's shape and is finite, at every size."""
    subject = trials.subject
    if subject.refused:
        lengths = ", ".join(map(str, subject.refused))
        first, why = next(iter(subject.refused.items()))
        raise Broken(f"lengths {lengths} do not run; at length {first} {why}")

    def probe(case: Case) -> None:
        with torch.no_grad():
            y = subject.forward(subject.build(case), subject.inputs(case))
        if not y.isfinite().all():
            raise Broken("the output is not finite")

    uses = trials.uses()
    trials.over(probe, uses, explicit=trials.cases(uses), share=0.4)
    return f"the shape stays and the output is finite in {trials.tried} configurations"


def reference(trials: Trials) -> str:
    """`forward` gives what `reference` gives."""
    subject, worst = trials.subject, 0.0
    _needs_reference(subject)

    def probe(case: Case) -> None:
        nonlocal worst
        layer, inputs = subject.build(case), sometimes_padded(subject, case)
        with torch.no_grad():
            fast, plain = subject.forward(layer, inputs), subject.reference(layer, inputs)
        error = off(fast, plain)
        worst = max(worst, error)
        if error > subject.tolerance:
            padded = " with padding" if inputs.padding is not None else ""
            raise Broken(f"forward is off its reference by {error:.2g}{padded}: {where(fast, plain)}")

    uses = trials.uses()
    trials.over(probe, uses, explicit=trials.cases(uses))
    return f"forward equals reference within {worst:.1e} in {trials.tried} configurations"


def gradients(trials: Trials) -> str:
    """Gradients are finite, and equal to the reference's."""
    subject, worst = trials.subject, 0.0
    if subject.supports is not None and not subject.supports.gradients:
        raise Skip("it declares no gradients")
    allowed = max(1e-7, 10 * subject.tolerance)

    def probe(case: Case) -> None:
        nonlocal worst
        layer, inputs = subject.build(case), sometimes_padded(subject, case)
        found = _gradients(layer, inputs, lambda given: subject.forward(layer, given))
        for name, gradient in found.items():
            if not gradient.isfinite().all():
                raise Broken(f"the gradient of {name} is not finite")
        if not subject.has_reference:
            return
        right = _gradients(layer, inputs, lambda given: subject.reference(layer, given))
        largest = max((float(gradient.abs().max()) for gradient in right.values()), default=0.0)
        for name, gradient in found.items():
            error = float((gradient - right[name]).abs().max()) / max(largest, 1.0)
            worst = max(worst, error)
            if not error <= allowed:
                raise Broken(
                    f"the gradient of {name} is off the reference's by {error:.2g}: "
                    f"{where(gradient, right[name])}"
                )

    uses = trials.uses()
    sizes = [size for size in subject.sizes if prod(size) < 100]
    trials.over(probe, uses, explicit=trials.cases(uses, sizes), share=0.4)
    if not subject.has_reference:
        return f"gradients are finite in {trials.tried} configurations"
    said = f"gradients are finite and equal the reference's within {worst:.1e}"
    return f"{said} in {trials.tried} configurations"


def half_precision(trials: Trials) -> str:
    """bfloat16, and float16 where the device has it, stay close to float32."""
    subject = trials.subject
    dtypes = [dtype for dtype in (torch.bfloat16, torch.float16) if computes_in("cpu", dtype)]
    worst = dict.fromkeys(dtypes, 0.0)

    def probe(case: Case) -> None:
        for dtype in dtypes:
            name = str(dtype).removeprefix("torch.")
            layer = subject.build(case, dtype=dtype)
            inputs = subject.inputs(case, dtype=dtype)
            exact = subject.build(case, dtype=dtype).float()
            with torch.no_grad():
                low = subject.forward(layer, inputs).float()
                right = subject.forward(exact, inputs.map(lambda part: part.float()))
                loud = subject.forward(layer, inputs.map(lambda part: part * 4))
            if low.isfinite().all() and not loud.isfinite().all():
                raise Broken(f"{name} overflows on inputs of standard deviation 4")
            if not low.isfinite().all():
                raise Broken(f"{name} gives values that are not finite")
            error = float((low - right).square().mean().sqrt() / right.std().clamp(min=1e-3))
            worst[dtype] = max(worst[dtype], error)
            if not error <= HALF_ERROR:
                raise Broken(f"{name} is off float32 by {error:.2g} standard deviations of the output")

    uses = trials.uses()
    for case in trials.cases(uses, subject.small_sizes):
        trials.one(probe, case)
    said = [f"{str(dtype).removeprefix('torch.')} {error:.1%}" for dtype, error in worst.items()]
    return f"error in standard deviations of the output: {', '.join(said)} (at most {HALF_ERROR:.0%})"


def _needs_reference(subject: Subject) -> None:
    if not subject.has_reference:
        raise Skip("it has no reference")


def sometimes_padded(subject: Subject, case: Case) -> Inputs:
    """The inputs of a case; with odd seeds some keys are padding, and of one sample all."""
    inputs = subject.inputs(case)
    if not subject.pads or case.seed % 2 == 0:
        return inputs
    generator = torch.Generator().manual_seed(case.seed)
    real = torch.rand(inputs.keys.shape[:2], generator=generator) < 0.7
    if case.batch > 1:
        real[-1] = False
    return replace(inputs, padding=real)


def _gradients(layer: nn.Module, inputs: Inputs, run) -> dict[str, Tensor]:
    """The gradients of a random projection of the output, of the inputs and of every parameter."""
    given = replace(
        inputs,
        x=inputs.x.clone().requires_grad_(),
        context=None if inputs.context is None else inputs.context.clone().requires_grad_(),
    )
    y = run(given)
    generator = torch.Generator().manual_seed(7)
    direction = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    wanted = {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}
    wanted["x"] = given.x
    if given.context is not None:
        wanted["context"] = given.context
    if not y.requires_grad:
        raise Broken("the output carries no gradient")
    found = torch.autograd.grad((y * direction).sum(), list(wanted.values()), allow_unused=True)
    return {
        name: torch.zeros_like(source) if gradient is None else gradient
        for (name, source), gradient in zip(wanted.items(), found)
    }
