"""The suite of tasks: data that is drawn from the generator it is handed, and a metric that knows best."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from regardant.atlas.catalog import keywords
from regardant.contract.brought import Brought
from regardant.contract.parts import apart, parts
from regardant.contract.report import Broken
from regardant.contract.subject import blame
from regardant.contract.wrong_input import Attempt, hold_to_one_sentence
from regardant.train.task import Task

SIZE = 16
"""Samples of a batch that is looked at as a whole."""


class Variants:
    """A task as it comes, and with each other value of every option that is a choice or a switch."""

    def __init__(self, subject: Brought, *, examples: int, seed: int):
        self.subject, self.seed = subject, seed
        self.batches = 2 * examples
        """Training batches among which no validation sample may be."""

    def make(self, **options: Any) -> Task:
        with blame("the constructor"):
            return self.subject.maker(**(dict(self.subject.config) | options))

    def __iter__(self) -> Iterator[tuple[str, Task]]:
        yield "as it comes", self.make()
        for name, values in self._choices().items():
            for value in values:
                try:
                    yield f"{name}={value!r}", self.make(**{name: value})
                except Broken as broken:
                    if not isinstance(broken.__cause__, ValueError):
                        raise

    def _choices(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for name, parameter in keywords(self.subject.maker)[0].items():
            if name in self.subject.config:
                continue
            default, annotation = parameter.default, str(parameter.annotation)
            if isinstance(default, bool):
                found[name] = [not default]
            elif annotation.startswith("Literal["):
                values = ast.literal_eval(f"({annotation[len('Literal[') : annotation.index(']')]},)")
                found[name] = [value for value in values if value != default]
        return found

    def over(self, probe: Callable[[Task], None]) -> str:
        """Run `probe` over the variants; how many there were, in words."""
        tried = 0
        for said, task in self:
            try:
                probe(task)
            except Broken as broken:
                raise Broken(f"{broken} ({said})") from None
            tried += 1
        return f"{tried} variant{'s' if tried > 1 else ''}"

    def generator(self, number: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + number)


def _batch(task: Task, generator: torch.Generator, size: int = SIZE) -> tuple[Any, Any]:
    with blame("batch"):
        drawn = task.batch(size, generator)
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise Broken(f"batch gave a {type(drawn).__name__}, not inputs and targets")
    return drawn


def _validation(task: Task) -> list[tuple[Any, Any]]:
    with blame("validation"):
        found = list(task.validation())
    if not found:
        raise Broken("validation gives no batch")
    return found


def _same(first: Any, second: Any) -> bool:
    return apart(parts(first, "the data"), parts(second, "the data"))[0] == 0


def generator(variants: Variants) -> str:
    """The same seed of the generator gives the same batch, another seed another one."""

    def probe(task: Task) -> None:
        first = _batch(task, variants.generator())
        if not _same(first, _batch(task, variants.generator())):
            raise Broken("the same seed gives another batch the second time")
        if _same(first, _batch(task, variants.generator(1))):
            raise Broken("another seed gives the same batch")
        kept = variants.generator()
        _batch(task, kept)
        if _same(first, _batch(task, kept)):
            raise Broken("the second batch from one generator is the first again")

    return f"batches follow the generator alone in {variants.over(probe)}"


def global_generator(variants: Variants) -> str:
    """The global generators are neither used nor moved."""

    def probe(task: Task) -> None:
        with torch.random.fork_rng(devices=[]):
            drawn = []
            for number in (1, 2):
                torch.manual_seed(number)
                random.seed(number)
                before = (torch.get_rng_state(), random.getstate())
                drawn.append((_batch(task, variants.generator()), _validation(variants.make())))
                if not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate():
                    raise Broken("drawing data moved a global generator")
        if not _same(*drawn):
            raise Broken("the data depend on the seed of a global generator")

    state = random.getstate()
    try:
        return f"the global generators are left alone in {variants.over(probe)}"
    finally:
        random.setstate(state)


def validation(variants: Variants) -> str:
    """Validation is the same each time, whatever was drawn in between, and in every copy of the task."""
    counted = 0

    def probe(task: Task) -> None:
        nonlocal counted
        first = _validation(task)
        counted += sum(_rows(inputs) for inputs, _ in first)
        _batch(task, variants.generator(3))
        if not _same(first, _validation(task)):
            raise Broken("validation is not the same the second time")

    said = variants.over(probe)
    if not _same(_validation(variants.make()), _validation(variants.make())):
        raise Broken("a second task with the same options has another validation")
    return f"validation ({counted} samples) stays the same in {said}"


def _rows(inputs: Any) -> int:
    return next(iter(parts(inputs).values())).shape[0]


def held_out(variants: Variants) -> str:
    """No validation sample is among many training batches."""
    compared = 0

    def probe(task: Task) -> None:
        nonlocal compared
        kept = {sample for inputs, _ in _validation(task) for sample in _samples(inputs)}
        for number in range(variants.batches):
            drawn = list(_samples(_batch(task, variants.generator(number))[0]))
            compared += len(drawn)
            if met := sum(sample in kept for sample in drawn):
                raise Broken(f"{met} of {len(drawn)} training samples are in the validation (seed {number})")

    said = variants.over(probe)
    return f"none of {compared} training samples is in the validation in {said}"


def _samples(inputs: Any) -> Iterator[bytes]:
    """Every sample's values."""
    columns = [part.contiguous() for part in parts(inputs).values()]
    for row in zip(*columns):
        yield b"|".join(bytes(value.contiguous().reshape(-1).view(torch.uint8).numpy()) for value in row)


def shape(variants: Variants) -> str:
    """A batch has the size that was asked for; dtypes are those of validation; nothing is not finite."""

    def probe(task: Task) -> None:
        right = parts(_validation(task)[0], "the data")
        for size in (1, 2, 5):
            found = parts(_batch(task, variants.generator(), size), "the data")
            if found.keys() != right.keys():
                raise Broken("training batches and validation are not of the same make")
            for name, part in found.items():
                name = name.replace("the data[0]", "inputs").replace("the data[1]", "targets")
                if part.ndim == 0 or part.shape[0] != size:
                    raise Broken(f"{name} are {tuple(part.shape)}, but a batch of {size} was asked for")
                if part.is_floating_point() and part.dtype is not torch.float32:
                    raise Broken(f"{name} are {part.dtype}, but floating data are float32")
                if part.is_floating_point() and not part.isfinite().all():
                    raise Broken(f"{name} are not finite")
        for name, part in found.items():
            if part.dtype is not right[name].dtype:
                raise Broken(f"training gives {part.dtype} where validation gives {right[name].dtype}")

    return f"batches have the size asked for and validation's dtypes in {variants.over(probe)}"


def _perfect(task: Task, inputs: Any, targets: Any) -> Tensor:
    with blame("perfect"):
        outputs = task.perfect(inputs, targets)
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise Broken("perfect gives no floating tensor, but outputs of a model are one")
    return outputs


def _random(outputs: Tensor, number: int) -> Tensor:
    """Outputs of a model that knows nothing, of the size of these."""
    draw = torch.Generator().manual_seed(number)
    return torch.randn(outputs.shape, generator=draw, dtype=torch.float64).to(outputs.dtype)


def loss(variants: Variants) -> str:
    """The loss is a finite scalar, and its gradient with respect to the outputs is finite and not zero."""

    def probe(task: Task) -> None:
        inputs, targets = _batch(task, variants.generator())
        outputs = _random(_perfect(task, inputs, targets), 1).requires_grad_()
        with blame("loss"):
            value = task.loss(outputs, targets)
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.isfinite():
            raise Broken("the loss is not a finite scalar")
        if not value.requires_grad:
            raise Broken("the loss carries no gradient to the outputs")
        (gradient,) = torch.autograd.grad(value, outputs, allow_unused=True)
        if gradient is None or not gradient.isfinite().all() or not gradient.any():
            raise Broken("the gradient of the loss is zero or not finite")

    return f"a finite scalar with a gradient in {variants.over(probe)}"


def _score(task: Task, outputs: Tensor, targets: Any) -> float:
    """How good these outputs are: the metric, turned so that more is better."""
    with blame("metric"):
        total, weight = task.metric(outputs, targets)
    for value in (total, weight):
        if not isinstance(value, Tensor) or not value.double().isfinite().all():
            raise Broken("metric does not give two finite tensors, a total and a weight")
    weight = weight.double()
    if not (weight > 0).any():
        raise Broken("the weight of a batch is 0, so that nothing is scored")
    value = float((total.double() / weight)[weight > 0].mean())
    return value if task.higher_is_better else -value


def best(variants: Variants) -> str:
    """`perfect` outputs score best by the metric, and better than random ones."""
    scores = []

    def probe(task: Task) -> None:
        for number, (inputs, targets) in enumerate(
            [_batch(task, variants.generator()), _validation(task)[0]]
        ):
            outputs = _perfect(task, inputs, targets)
            score = _score(task, outputs, targets)
            spread = float(outputs.std()) if outputs.numel() > 1 else 1.0
            for share in (0.03, 0.3, 1.0):
                noise = share * max(spread, 1e-3) * _random(outputs, 10 + number)
                other = _score(task, outputs + noise, targets)
                if other > score + 1e-9 * max(1.0, abs(score)):
                    raise Broken(
                        f"perfect outputs score {score:.6g}, with noise on them {other:.6g}, which is better"
                    )
            chance = _score(task, max(spread, 1e-3) * _random(outputs, 20 + number), targets)
            if not chance < score:
                raise Broken(f"perfect outputs score {score:.6g}, and random ones {chance:.6g}")
            scores.append(abs(score))

    said = variants.over(probe)
    return f"perfect outputs score {min(scores):.3g} to {max(scores):.3g}, noise and chance worse, in {said}"


def sums(variants: Variants) -> str:
    """The metric of a batch is put together from those of its halves."""

    def probe(task: Task) -> None:
        inputs, targets = _batch(task, variants.generator())
        outputs = _random(_perfect(task, inputs, targets), 5)
        with blame("metric"):
            whole = task.metric(outputs, targets)
            halves = [task.metric(outputs[at], _cut(targets, at)) for at in (slice(5), slice(5, None))]
        for name, right, *given in zip(("total", "weight"), whole, *halves):
            error = float((sum(part.double() for part in given) - right.double()).abs().max())
            if not error <= 1e-4 * max(1.0, float(right.double().abs().max())):
                raise Broken(f"the {name} of a batch is off the sum of its parts' by {error:.2g}")

    return f"a batch is the sum of its parts in {variants.over(probe)}"


def _cut(targets: Any, at: slice) -> Any:
    return targets[at] if isinstance(targets, Tensor) else type(targets)(_cut(part, at) for part in targets)


def errors(variants: Variants) -> str:
    """A negative count and an unknown choice raise a `ValueError` of one sentence, at latest when drawn."""
    attempts: list[Attempt] = []
    for name, parameter in keywords(variants.subject.maker)[0].items():
        default, annotation = parameter.default, str(parameter.annotation)
        whole = isinstance(default, int) and not isinstance(default, bool)
        if name == "seed" or not (whole or annotation.startswith("Literal[")):
            continue
        value = -1 if whole else "nonsense"
        attempts.append((f"{name}={value!r}", lambda name=name, value=value: _used(variants, {name: value})))
    for attempt in attempts:
        hold_to_one_sentence(attempt)
    return f"{len(attempts)} wrong options each get one sentence"


def _used(variants: Variants, options: dict[str, Any]) -> None:
    task = variants.subject.maker(**(dict(variants.subject.config) | options))
    task.batch(2, variants.generator())
    list(task.validation())
