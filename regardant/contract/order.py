"""What a causal layer promises: no look into the future, and the same token by token."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from regardant.contract.drawing import Case, Trials
from regardant.contract.equality import off
from regardant.contract.report import Broken, Skip
from regardant.contract.subject import Inputs, Subject, blame

Run = Callable[[Inputs], Tensor]


def causality(trials: Trials) -> str:
    """The past does not move, whatever is done to the future, and whether it is there or not."""
    subject = trials.subject
    if any(use.causal is None for use in subject.uses):
        return _found_out(trials)

    def probe(case: Case) -> None:
        layer = subject.build(case)
        look_for_leaks(subject, case, lambda inputs: subject.forward(layer, inputs))

    uses = trials.uses(causal=True, across=False)
    trials.over(probe, uses, explicit=trials.cases(uses))
    return f"no change to the future moved the past in {trials.tried} configurations"


def _found_out(trials: Trials) -> str:
    """For a layer that does not say whether it is causal: say whether it is."""
    subject = trials.subject
    case = Case(subject.small_sizes[0], heads=subject.plain_heads)
    layer = subject.build(case)
    try:
        look_for_leaks(subject, case, lambda inputs: subject.forward(layer, inputs))
    except Broken as broken:
        return f"not causal, and it does not say that it is: {broken} ({case}); say causal=True to insist"
    return "causal, though it does not say so: no change to the future moved the past"


def training(trials: Trials) -> str:
    """In `train()` mode the past does not see the future either."""
    subject = trials.subject

    def probe(case: Case) -> None:
        layer = subject.build(case).train()

        def run(inputs: Inputs) -> Tensor:
            # A fresh copy and the same random numbers: what a step of training remembers is no leak.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(5)
                return subject.forward(deepcopy(layer), inputs)

        look_for_leaks(subject, case, run)

    uses = trials.uses(causal=True, across=False)
    sizes = [size for size in subject.sizes if size[0] <= 64]
    trials.over(probe, uses, explicit=trials.cases(uses, sizes), share=0.2)
    return f"no change to the future moved the past in {trials.tried} configurations"


def look_for_leaks(subject: Subject, case: Case, run: Run) -> None:
    """Change the future in every way and compare the past; name the token and the position."""
    inputs, n = subject.inputs(case), case.length
    with torch.no_grad():
        y = run(inputs)
        for cut in sorted({1, n // 2, n - 1} & set(range(1, n))):
            for changed in _futures(inputs.x, cut, seed=case.seed):
                moved = _movement(run(replace(inputs, x=changed))[:, :cut], y[:, :cut], subject.tolerance)
                if moved is not None:
                    raise Broken(_name_the_leak(subject, run, inputs, y, changed, cut, moved))
            if not subject.takes_size((cut,)):
                continue
            short = run(replace(inputs, x=inputs.x[:, :cut].contiguous()))
            moved = _movement(short, y[:, :cut], subject.tolerance)
            if moved is not None:
                position, by = moved
                raise Broken(
                    f"future leak: leaving out the tokens from {cut} on moved the output at position "
                    f"{position} by {by:.2g}"
                )


def _futures(x: Tensor, cut: int, *, seed: int) -> list[Tensor]:
    """The same past with other futures: some loud, so that a choice among tokens flips."""
    generator = torch.Generator().manual_seed(50 + seed)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    other, loud, one, next_one = (x.clone() for _ in range(4))
    other[:, cut:] += noise[:, cut:]
    loud[:, cut:] = noise[:, cut:] * 100
    one[:, -1] = noise[:, -1] * 100
    next_one[:, cut] = -x[:, cut] * 30
    turned = torch.cat([x[:, :cut], x[:, cut:].flip(1) * 10], dim=1)
    copied = torch.cat([x[:, :cut], x[:, :1].expand(-1, x.shape[1] - cut, -1) * 20], dim=1)
    return [other, loud, one, next_one, turned, copied]


def _movement(found: Tensor, right: Tensor, tolerance: float) -> tuple[int, float] | None:
    """The position that moved most and by how much, or None where none moved more than rounding."""
    if found.numel() == 0:
        return None
    apart = (found - right).abs().flatten(2).amax((0, 2)).nan_to_num(nan=float("inf"))
    if float(apart.max()) <= tolerance * max(1.0, float(right.abs().max())):
        return None
    position = int(apart.argmax())
    return position, float(apart[position])


def _name_the_leak(
    subject: Subject, run: Run, inputs: Inputs, y: Tensor, changed: Tensor, cut: int, moved: tuple[int, float]
) -> str:
    """Which single token it was, if one alone does it."""
    last = inputs.x.shape[1] - 1
    for token in range(cut, last + 1):
        alone = inputs.x.clone()
        alone[:, token] = changed[:, token]
        by_one = _movement(run(replace(inputs, x=alone))[:, :cut], y[:, :cut], subject.tolerance)
        if by_one is not None:
            position, by = by_one
            return f"future leak: changing token {token} moved the output at position {position} by {by:.2g}"
    position, by = moved
    return (
        f"future leak: changing tokens {cut} to {last} together moved the output at position "
        f"{position} by {by:.2g}"
    )


def noncausal(trials: Trials) -> str:
    """A layer that is not causal does look ahead."""
    subject = trials.subject

    def probe(case: Case) -> None:
        layer, inputs = subject.build(case), subject.inputs(case)
        with torch.no_grad():
            y = subject.forward(layer, inputs)
            for changed in _futures(inputs.x, 4, seed=case.seed):
                ahead = subject.forward(layer, replace(inputs, x=changed))[:, :4]
                if _movement(ahead, y[:, :4], subject.tolerance):
                    return
        raise Broken("the first 4 outputs never move when later tokens change, as if it were causal")

    uses = trials.uses(causal=False, across=False)
    trials.over(probe, uses, share=0.2, patterns=False, fixed={"size": (17,), "options": ()})
    return f"earlier outputs depend on later tokens in {trials.tried} configurations"


def step(trials: Trials) -> str:
    """Token by token gives what `forward` gives at once; an old state may be stepped again."""
    subject, worst = trials.subject, 0.0
    if not subject.has_step:
        raise Skip("it does not decode step by step")

    def probe(case: Case) -> None:
        nonlocal worst
        layer, inputs = subject.build(case), subject.inputs(case)
        with torch.no_grad():
            y = subject.forward(layer, inputs)
            scale = max(1.0, float(y.abs().max()))
            state, forks = begin(layer, inputs), []
            for t in range(case.length):
                if t in (0, case.length // 2, case.length - 1):
                    forks.append((t, state))
                out, state = take_step(layer, inputs.x[:, t], state)
                worst = max(worst, off(out, y[:, t]))
                _compare(out, y[:, t], subject.tolerance * scale, f"step {t} is off forward by")
            for t, old in forks:
                out, _ = take_step(layer, inputs.x[:, t], old)
                _compare(
                    out, y[:, t], subject.tolerance * scale, f"stepping the old state {t} again is off by"
                )
            if callable(getattr(layer, "prefill", None)) and inputs.context is None and case.length > 1:
                _after_a_prompt(subject, layer, inputs, y, scale)

    uses = trials.uses(causal=True)
    trials.over(probe, uses, explicit=trials.cases(uses), share=0.4)
    return f"stepping equals forward within {worst:.1e} in {trials.tried} configurations"


def _after_a_prompt(subject: Subject, layer: nn.Module, inputs: Inputs, y: Tensor, scale: float) -> None:
    half = inputs.x.shape[1] // 2
    with blame("prefill"):
        out, state = layer.prefill(inputs.x[:, :half])
    _compare(out, y[:, :half], subject.tolerance * scale, "prefill is off forward by")
    for t in range(half, inputs.x.shape[1]):
        out, state = take_step(layer, inputs.x[:, t], state)
        _compare(
            out, y[:, t], subject.tolerance * scale, f"step {t} after a prompt of {half} is off forward by"
        )


def begin(layer: nn.Module, inputs: Inputs):
    """The state before the first token."""
    given = {name: value for name in ("context", "padding") if (value := getattr(inputs, name)) is not None}
    with blame("start"):
        return layer.start(inputs.x.shape[0], **given)


def take_step(layer: nn.Module, x_t: Tensor, state):
    with blame("step"):
        return layer.step(x_t, state)


def _compare(found: Tensor, right: Tensor, allowed: float, said: str) -> None:
    if found.shape != right.shape:
        raise Broken(f"{said} its shape: {tuple(found.shape)} instead of {tuple(right.shape)}")
    apart = float((found - right).abs().max())
    if not apart <= allowed:
        raise Broken(f"{said} {apart:.2g}")


def position(trials: Trials) -> str:
    """Every position that the layer takes makes a difference."""
    subject = trials.subject
    if len(subject.positions) == 1:
        raise Skip("it takes no position")
    use = trials.uses(across=False)[0]
    plain = Case((17,), heads=subject.plain_heads, causal=use.causal)
    without, inputs = subject.build(plain), subject.inputs(plain)
    for name in subject.positions[1:]:
        layer = subject.build(replace(plain, position=name))
        layer.load_state_dict(without.state_dict(), strict=False)
        with torch.no_grad():
            same = _movement(subject.forward(layer, inputs), subject.forward(without, inputs), 1e-6) is None
        if same:
            raise Broken(f"position={name!r} is taken and makes no difference ({plain})")
    return f"each makes a difference: {', '.join(subject.positions[1:])}"


def cross(trials: Trials) -> str:
    """The output depends on the context, on each of its keys that is real and on nothing else of it."""
    subject = trials.subject

    def probe(case: Case) -> None:
        layer, inputs = subject.build(case), subject.inputs(case)
        with torch.no_grad():
            y = subject.forward(layer, inputs)
            moved = subject.forward(layer, replace(inputs, context=inputs.context.flip(0) * 2 + 1))
        if _movement(moved, y, subject.tolerance) is None:
            raise Broken("the output does not move when the context changes")

    uses = trials.uses(across=True)
    trials.over(probe, uses, explicit=trials.cases(uses), share=0.4, fixed={"options": ()})
    return f"the output follows a context of any length in {trials.tried} configurations"


def causal_cross(trials: Trials) -> str:
    """With a context, a query's output depends on no later query."""
    subject = trials.subject

    def probe(case: Case) -> None:
        layer = subject.build(case)
        look_for_leaks(subject, case, lambda inputs: subject.forward(layer, inputs))

    uses = trials.uses(causal=True, across=True)
    trials.over(probe, uses, explicit=trials.cases(uses), share=0.4)
    return f"no change to later queries moved earlier ones in {trials.tried} configurations"
