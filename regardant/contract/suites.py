"""The suites: which properties each kind of layer is held to, and how to run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch

from regardant.atlas import catalog
from regardant.contract import (
    backbone,
    carried,
    edit,
    equality,
    field_of_view,
    growth,
    isolation,
    keeping,
    known_answers,
    mixing,
    network,
    order,
    task,
    wrong_input,
)
from regardant.contract.brought import FOLDERS, Brought
from regardant.contract.drawing import Trials
from regardant.contract.recognise import recognise
from regardant.contract.report import Broken, Report, Skip, Verdict
from regardant.contract.subject import Subject
from regardant.core.errors import require

EXAMPLES = 25
"""Drawn configurations a property, besides the explicit ones."""

Property = Callable[[Any], str]
Progress = Callable[[str, str], None]

_EVERYWHERE: dict[str, Property] = {
    "shape": equality.shape,
    "reference": equality.reference,
    "gradients": equality.gradients,
    "half precision": equality.half_precision,
    "batch": isolation.batch,
    "layout": keeping.layout,
    "stateless": keeping.stateless,
    "state dict": keeping.state_dict,
    "time": growth.time,
    "memory": growth.memory,
    "errors": wrong_input.errors,
}
_SEQUENCE: dict[str, Property] = {
    "causality": order.causality,
    "training": order.training,
    "noncausal": order.noncausal,
    "step": order.step,
    "padding": isolation.padding,
    "right padding": isolation.right_padding,
    "padded rows": isolation.padded_rows,
    "pattern": isolation.pattern,
    "position": order.position,
    "grouped": isolation.grouped,
    "cross": order.cross,
    "causal cross": order.causal_cross,
    "mixing matrix": mixing.mixing_matrix,
    "state": growth.state,
    "decoding": growth.decoding,
}
_GRID: dict[str, Property] = {
    "receptive field": field_of_view.receptive_field,
    "reach": field_of_view.reach,
}
_RULE: dict[str, Property] = {"values": carried.values}
_NETWORK: dict[str, Property] = {
    "shape": network.shape,
    "reference": network.reference,
    "gradients": network.gradients,
    "half precision": network.half_precision,
    "batch": network.batch,
    "layout": network.layout,
    "stateless": network.stateless,
    "state dict": network.state_dict,
    "errors": network.errors,
}
_BACKBONE: dict[str, Property] = {
    "features": backbone.features,
    "sizes": backbone.sizes,
    "receptive field": backbone.receptive_field,
    "reach": backbone.reach,
    "variants": backbone.variants,
    "fuse": backbone.fused,
    "checkpoint": backbone.checkpoint,
}
_TASK: dict[str, Property] = {
    "shape": task.shape,
    "generator": task.generator,
    "global generator": task.global_generator,
    "validation": task.validation,
    "held out": task.held_out,
    "loss": task.loss,
    "best": task.best,
    "sums": task.sums,
    "errors": task.errors,
}
_EDIT: dict[str, Property] = {
    "zero strength": edit.zero_strength,
    "effect": edit.effect,
    "restoration": edit.restoration,
    "settings": edit.settings,
    "composition": edit.composition,
    "padding": edit.padding,
    "causality": edit.causality,
    "cache": edit.cache,
    "generation": edit.generation,
    "errors": edit.errors,
}
_KNOWN_ANSWERS: dict[str, Property] = {
    "answers": known_answers.answers,
    "generator": known_answers.generator,
    "untouched": known_answers.untouched,
}
SUITES: dict[str, dict[str, Property]] = {
    "sequence": _EVERYWHERE | _SEQUENCE,
    "rule": _EVERYWHERE | _SEQUENCE | _RULE,
    "grid": _EVERYWHERE | _GRID,
    "gate": _EVERYWHERE,
    "network": _NETWORK,
    "backbone": _NETWORK | _BACKBONE,
    "task": _TASK,
    "edit": _EDIT,
    "known answers": _KNOWN_ANSWERS,
}
FOLDER_SUITES = {"sequence": "sequence", "grid": "grid", "gate": "gate"} | FOLDERS
"""The folders of the package whose systems have a suite, and which."""
_GIVEN = {
    "network": network.Examples,
    "backbone": network.Examples,
    "task": task.Variants,
    "edit": edit.Edits,
    "known answers": known_answers.Answers,
}
"""What the properties of a suite are asked about, where it is one thing for all of them."""


def check(
    obj: Any, *, kind: str | None = None, config: Mapping[str, Any] | None = None, causal: bool | None = None,
    examples: int = EXAMPLES, seed: int = 0, progress: Progress | None = None, name: str | None = None,
) -> Report:  # fmt: skip
    """Put a layer, a rule, a network, a task or what has known answers through its suite.

    `obj` is a class, an instance, a factory, or `"module:Attribute"` of one. `config` holds arguments
    for its constructor (for an instance: its `dim`, its `heads`, where they cannot be found), `causal`
    says what to expect of a layer that does not say so itself, `kind` what it is where that is not
    plain. The object itself is never changed: copies are.
    """
    require(examples >= 1, f"examples is {examples}, but at least 1 configuration must be drawn")
    subject = recognise(obj, name=name, kind=kind, config=config, causal=causal)
    suite = SUITES[subject.kind]
    strange = sorted(set(subject.exempt) - set(suite))
    require(
        not strange,
        f"exempt of {subject.name} names {', '.join(map(repr, strange))}; "
        f"the properties are {', '.join(suite)}",
    )
    given = _GIVEN.get(subject.kind)
    whole = given(subject, examples=examples, seed=seed) if given else None
    verdicts = []
    with _one_thread():
        for title, prove in suite.items():
            if progress is not None:
                progress(subject.name, title)
            asked = whole or Trials(subject, examples=examples, seed=seed)
            verdicts.append(_verdict(subject, title, prove, asked))
    return Report(subject.name, subject.kind, verdicts)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small calls: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _verdict(subject: Subject | Brought, title: str, prove: Property, asked: Any) -> Verdict:
    if title in subject.exempt:
        return Verdict(title, "exempt", subject.exempt[title])
    began = perf_counter()
    try:
        detail, status = prove(asked), "passed"
    except Skip as skip:
        detail, status = str(skip), "skipped"
    except Broken as broken:
        detail, status = str(broken), "failed"
    return Verdict(title, status, detail, perf_counter() - began)


def run(
    names: Iterable[str], *, kind: str | None = None, examples: int = EXAMPLES, seed: int = 0,
    progress: Progress | None = None,
) -> list[Report]:  # fmt: skip
    """Put systems of the atlas through their suites; where none is named, all of that kind that have one."""
    chosen = list(names) or with_a_suite(kind)
    reports = []
    for name in chosen:
        system = catalog.system(name)
        try:
            found = catalog.resolve(name)
        except (ImportError, ValueError) as error:
            verdict = Verdict("import", "failed", " ".join(str(error).split()))
            reports.append(Report(name, system.kind, [verdict]))
            continue
        reports.append(check(found, name=name, examples=examples, seed=seed, progress=progress))
    return reports


def with_a_suite(kind: str | None = None) -> list[str]:
    """The systems that a suite exists for: all, or those of some kinds ("sequence,grid")."""
    kinds = [part.strip() for part in kind.split(",")] if kind else list(FOLDER_SUITES)
    for each in kinds:
        known = ", ".join(FOLDER_SUITES)
        require(each in FOLDER_SUITES, f"kind is {each!r}, but contract suites exist for {known}")
    return sorted(name for each in kinds for name in catalog.names(each))
