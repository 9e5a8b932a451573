"""Wrong input gets one clear sentence: a `ValueError`, asked of this project's own classes only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from regardant.contract.drawing import Case, Trials
from regardant.contract.report import Broken, Skip
from regardant.contract.subject import Subject
from regardant.core.pattern import Window

Attempt = tuple[str, Callable[[], Any]]


def errors(trials: Trials) -> str:
    """Each wrong input raises a `ValueError` of one sentence."""
    subject = trials.subject
    if not subject.ours:
        raise Skip("only layers of this project promise how they refuse wrong input")
    attempts: dict[str, Callable[[], Any]] = {}
    for use in trials.uses():
        case = Case(
            (5, 4, 3)[: len(subject.sizes[0])], heads=subject.plain_heads, causal=use.causal,
            across=use.across, keys=7 if use.across else 0,
        )  # fmt: skip
        found = dict([*_calls(subject, case), *_constructions(subject, case)])
        attempts |= {said: attempt for said, attempt in found.items() if said not in attempts}
    for attempt in attempts.items():
        hold_to_one_sentence(attempt)
    return f"{len(attempts)} wrong inputs each get one sentence"


def hold_to_one_sentence(attempt: Attempt, *, accepted: bool = False) -> bool:
    """Whether the attempt was refused, as it must be (unless it may be `accepted`), in one sentence."""
    said, act = attempt
    try:
        with torch.no_grad():
            act()
    except ValueError as error:
        text = str(error)
        if not text.strip() or "\n" in text:
            raise Broken(f"{said} raises a ValueError that is not one sentence: {text!r}") from error
        return True
    except Exception as error:
        raise Broken(f"{said} raises {type(error).__name__}, not a ValueError of one sentence") from error
    if not accepted:
        raise Broken(f"{said} is accepted in silence")
    return False


def _calls(subject: Subject, case: Case) -> Iterator[Attempt]:
    layer, inputs = subject.build(case), subject.inputs(case)
    channels = 1 if subject.kind == "gate" else -1

    def called(**changed: Any) -> Callable[[], Any]:
        return lambda: subject.call(layer, replace(inputs, **changed))

    yield "x of a wrong rank", called(x=inputs.x[0])
    yield "x of a wrong width", called(x=torch.cat([inputs.x, inputs.x], dim=channels))
    if next(layer.parameters(), None) is not None:
        yield "x of a wrong type", called(x=inputs.x.float())
    if len(case.size) > 1:
        return
    count = inputs.keys.shape[1]
    if subject.pads:
        yield "padding of a wrong length", called(padding=torch.ones(case.batch, count + 1, dtype=torch.bool))
        yield "padding that is not bool", called(padding=torch.ones(case.batch, count))
    else:
        yield (
            "padding, which it does not take,",
            called(padding=torch.ones(case.batch, count, dtype=torch.bool)),
        )
    if case.across:
        yield "a missing context", called(context=None)
        yield "a context of a wrong width", called(context=inputs.context[..., 1:])
        yield "a context of another batch", called(context=inputs.context[:1])
    if subject.has_step and case.causal and not case.across:
        yield "a step of a wrong width", lambda: layer.step(inputs.x[:, 0, :-1], layer.start(case.batch))
    elif case.causal is not None and not case.across:
        yield "start of a layer that cannot step", lambda: layer.start(case.batch)


def _constructions(subject: Subject, case: Case) -> Iterator[Attempt]:
    """Wrong arguments of the constructor; a carrier of a rule is ours to make, so nothing to ask of it."""
    if subject.kind == "rule":
        if not subject.supports.pattern:
            layer, inputs = subject.build(case), subject.inputs(case)
            triple = layer.project(inputs.x, inputs.context)
            yield "a pattern, which it does not take,", lambda: layer.rule(*triple, pattern=Window(3))
        return

    def made(**changed: Any) -> Callable[[], Any]:
        return lambda: subject.make({**subject.configuration(case), **changed})

    takes, supports = subject.takes, subject.supports
    if {"dim", "heads"} <= takes:
        yield "heads that do not divide", made(dim=17, heads=2)
    if "heads" in takes:
        yield "no head at all", made(heads=0)
    if "kv_heads" in takes:
        yield "kv_heads that do not divide", made(dim=32, heads=4, kv_heads=3)
        if not supports.grouped:
            yield "kv_heads, which it does not share,", made(dim=32, heads=4, kv_heads=2)
    if "pattern" in takes and not supports.pattern:
        yield "a pattern, which it does not take,", made(pattern=Window(3))
    if "causal" in takes and len(case.size) == 1:
        for use, able in (("causal", supports.causal), ("noncausal", supports.noncausal)):
            if not able:
                yield f"{use} self-attention, which it has not,", made(causal=use == "causal")
        if "context_dim" in takes:
            for use, able in (("causal", supports.causal_cross), ("noncausal", supports.cross)):
                if not able:
                    yield (
                        f"{use} cross-attention, which it has not,",
                        made(causal=use == "causal", context_dim=20),
                    )
