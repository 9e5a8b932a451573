"""What must not mix: samples of a batch, padding and what is real, positions that no pattern joins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from regardant.contract.drawing import PATTERNS, Case, Trials
from regardant.contract.equality import off
from regardant.contract.report import Broken, Skip
from regardant.contract.subject import Inputs, Subject


def batch(trials: Trials) -> str:
    """Samples of a batch never see each other."""
    subject = trials.subject

    def probe(case: Case) -> None:
        case = replace(case, batch=3)
        layer, inputs = subject.build(case), subject.inputs(case)
        others = inputs.map(lambda part: torch.cat([part[:1], part[1:].flip(0) * 50 + 1]))
        with torch.no_grad():
            first = subject.forward(layer, inputs)[:1]
            error = off(subject.forward(layer, others)[:1], first)
            if error > subject.tolerance:
                raise Broken(f"batch cross-talk: changing the other samples moved sample 0 by {error:.2g}")
            error = off(subject.forward(layer, inputs.map(lambda part: part[:1])), first)
            if error > subject.tolerance:
                raise Broken(
                    f"batch cross-talk: sample 0 alone differs from sample 0 of three by {error:.2g}"
                )

    uses = trials.uses()
    trials.over(probe, uses, explicit=trials.cases(uses, subject.small_sizes), share=0.4)
    return f"no sample saw another in {trials.tried} configurations"


def padding(trials: Trials) -> str:
    """What stands in padded places changes nothing at real ones."""
    subject = trials.subject
    _needs_padding(subject)

    def probe(case: Case) -> None:
        layer, inputs = subject.build(case), subject.inputs(case)
        for side, real in paddings(inputs.keys):
            padded = replace(inputs, padding=real)
            queries = real if inputs.context is None else torch.ones(inputs.x.shape[:2], dtype=torch.bool)
            with torch.no_grad():
                y = subject.forward(layer, padded)
                _insensitive(subject, layer, padded, y, queries, side)

    uses = trials.uses()
    trials.over(probe, uses, explicit=trials.cases(uses), share=0.4)
    return f"no padded key moved a real position in {trials.tried} configurations (left, right, scattered)"


def right_padding(trials: Trials) -> str:
    """Padding behind a sequence is as if it were not there."""
    subject = trials.subject
    _needs_padding(subject)

    def probe(case: Case) -> None:
        layer, inputs = subject.build(case), subject.inputs(case)
        inputs = replace(inputs, padding=dict(paddings(inputs.keys))["right"])
        with torch.no_grad():
            _as_if_absent(subject, layer, inputs, subject.forward(layer, inputs))

    uses = trials.uses()
    trials.over(probe, uses, explicit=trials.cases(uses), share=0.4)
    return f"padded sequences equal unpadded ones in {trials.tried} configurations"


def paddings(keys: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Masks of keys with padding on the left, on the right and scattered; some key is always real."""
    batch, n = keys.shape[:2]
    at, sample = torch.arange(n), torch.arange(batch)[:, None]
    count = (n * (2 + sample % 3) // 5).clamp(max=n - 1)
    yield "left", at >= count
    yield "right", at < n - count
    yield "scattered", ((at * 7 + sample) % 3 != 1) | (at == n // 2)


def _insensitive(
    subject: Subject, layer: nn.Module, inputs: Inputs, y: Tensor, queries: Tensor, side: str
) -> None:
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(inputs.keys.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    scale = subject.tolerance * max(1.0, float(y[queries].abs().max()))
    for garbage in (noise, noise * 1e4):
        changed = _refilled(inputs, garbage, ~inputs.padding)
        apart = (subject.forward(layer, changed) - y).abs().amax(-1).masked_fill(~queries, 0)
        if not float(apart.max()) <= scale:
            sample, position = divmod(int(apart.argmax()), apart.shape[1])
            for key in (~inputs.padding[sample]).nonzero().flatten().tolist():
                only = torch.zeros_like(inputs.padding)
                only[sample, key] = True
                alone = subject.forward(layer, _refilled(inputs, garbage, only))[sample, position]
                if not float((alone - y[sample, position]).abs().max()) <= scale:
                    raise Broken(
                        f"padding leak: changing the padded key {key} moved the output at the real position "
                        f"{position} by {float((alone - y[sample, position]).abs().max()):.2g} "
                        f"(padding on the {side})".replace("on the scattered", "scattered")
                    )
            raise Broken(f"padding leak: changing padded keys moved the output at position {position}")


def _refilled(inputs: Inputs, garbage: Tensor, where: Tensor) -> Inputs:
    filled = torch.where(where[..., None], garbage, inputs.keys)
    return replace(inputs, x=filled) if inputs.context is None else replace(inputs, context=filled)


def _as_if_absent(subject: Subject, layer: nn.Module, inputs: Inputs, y: Tensor) -> None:
    for sample, count in enumerate(inputs.padding.sum(1).tolist()):
        mine = inputs.map(lambda part, sample=sample: part[sample : sample + 1])
        if inputs.context is None:
            bare, right = Inputs(mine.x[:, :count]), y[sample : sample + 1, :count]
        else:
            bare, right = Inputs(mine.x, mine.context[:, :count]), y[sample : sample + 1]
        error = off(subject.forward(layer, bare), right)
        if error > subject.tolerance:
            raise Broken(
                f"{count} real tokens give something else with {inputs.keys.shape[1] - count} padded ones "
                f"behind them than alone, by {error:.2g}"
            )


def padded_rows(trials: Trials) -> str:
    """A sample that is nothing but padding stays finite and disturbs nobody, gradients too."""
    subject = trials.subject
    _needs_padding(subject)

    def probe(case: Case) -> None:
        case = replace(case, batch=2)
        layer, inputs = subject.build(case), subject.inputs(case)
        real = torch.ones(inputs.keys.shape[:2], dtype=torch.bool)
        with torch.no_grad():
            right = subject.forward(layer, replace(inputs, padding=real.clone()))[0]
        real[1] = False
        inputs = replace(inputs, x=inputs.x.clone().requires_grad_(), padding=real)
        y = subject.forward(layer, inputs)
        if not y.isfinite().all():
            raise Broken("a sample of nothing but padding gives values that are not finite")
        error = off(y[0].detach(), right)
        if error > subject.tolerance:
            raise Broken(f"a sample of nothing but padding moved the sample beside it by {error:.2g}")
        if y.requires_grad:
            (gradient,) = torch.autograd.grad(y.sum(), inputs.x, allow_unused=True)
            if gradient is not None and not gradient.isfinite().all():
                raise Broken("a sample of nothing but padding gives gradients that are not finite")

    uses = trials.uses()
    trials.over(probe, uses, explicit=trials.cases(uses, subject.small_sizes), share=0.3)
    return f"samples without a real key stay finite in {trials.tried} configurations"


def _needs_padding(subject: Subject) -> None:
    if not subject.pads:
        declared = subject.supports is not None
        raise Skip("it declares no padding" if declared else "its forward takes no padding")


def pattern(trials: Trials) -> str:
    """A query never sees a key that the layer's pattern forbids."""
    subject = trials.subject
    if len(subject.patterns) == 1:
        raise Skip("it takes no pattern")

    def probe(case: Case) -> None:
        layer, inputs = subject.build(case), subject.inputs(case)
        own = getattr(layer, "pattern", None) or PATTERNS[case.pattern](case.heads or 1)
        if own is None:
            return
        n = case.length
        allowed = own.on(n).dense(n, batch=case.batch, heads=case.heads or 1)
        allowed = allowed.reshape(-1, n, n).any(0)
        with torch.no_grad():
            y = subject.forward(layer, inputs)
            for key in sorted({0, n // 3, n - 1}):
                changed = inputs.x.clone()
                changed[:, key] = changed[:, key] * -30 + 5
                blind = ~allowed[:, key]
                blind[key] = False  # its own query changed, too
                apart = (subject.forward(layer, replace(inputs, x=changed)) - y).abs().amax((0, 2)) * blind
                if not float(apart.max()) <= subject.tolerance * max(1.0, float(y.abs().max())):
                    raise Broken(
                        f"pattern leak: changing key {key} moved position {int(apart.argmax())}, "
                        f"which may not see it, by {float(apart.max()):.2g}"
                    )

    uses = trials.uses(across=False)
    trials.over(probe, uses)
    return f"no key was seen that the pattern forbids, in {trials.tried} configurations"


def grouped(trials: Trials) -> str:
    """Shared keys and values are the same as keys and values repeated for every head."""
    subject = trials.subject
    if not subject.varies_kv_heads:
        raise Skip("it does not share keys among heads")

    def probe(case: Case) -> None:
        case = replace(case, heads=4, kv_heads=case.kv_heads if case.kv_heads in (1, 2) else 2)
        layer = subject.build(case)
        alike = subject.build(replace(case, kv_heads=None))
        weights, wanted = layer.state_dict(), alike.state_dict()
        times = case.heads // case.kv_heads
        for name, weight in weights.items():
            if name in wanted and weight.shape != wanted[name].shape:
                parts = weight.unflatten(0, (case.kv_heads, -1)).repeat_interleave(times, 0).flatten(0, 1)
                weights[name] = parts
        if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in wanted.items()}:
            raise Skip("its weights for shared keys cannot be told from the others")
        alike.load_state_dict(weights)
        inputs = subject.inputs(case)
        with torch.no_grad():
            error = off(subject.forward(layer, inputs), subject.forward(alike, inputs))
        if error > subject.tolerance:
            raise Broken(
                f"heads that share keys differ from heads with the same keys repeated by {error:.2g}"
            )

    uses = trials.uses()
    trials.over(probe, uses, explicit=[case for case in trials.cases(uses) if case.kv_heads], share=0.4)
    return f"shared keys equal repeated ones in {trials.tried} configurations"
