"""The suite of networks: heads, memories, poolers, whole models; tried on the examples that they bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice

import torch
from torch import Tensor, nn

from regardant.contract.brought import Brought
from regardant.contract.equality import HALF_ERROR, where
from regardant.contract.parts import hold_equal, parts
from regardant.contract.report import Broken
from regardant.contract.subject import blame, with_random_constants
from regardant.contract.wrong_input import hold_to_one_sentence
from regardant.core.checks import computes_in
from regardant.core.network import Example, Network

TOLERANCE = 1e-9


class Examples:
    """The examples of a network: those of one pass, then more with other draws."""

    def __init__(self, subject: Brought, *, examples: int, seed: int):
        self.subject, self.seed = subject, seed
        self.network: type[Network] = subject.maker
        self._count, self._all, self._first = examples, None, 0

    def some(self, share: float = 1.0) -> Iterator[tuple[int, Example]]:
        """Numbered examples: always every one of the first pass."""
        drawn = self._drawn()
        yield from enumerate(drawn[: max(self._first, round(len(drawn) * share))])

    def _drawn(self) -> list[Example]:
        if self._all is None:
            self._all = []
            for attempt in count():
                generator = torch.Generator().manual_seed(1000 * self.seed + attempt)
                room = self._count - len(self._all)
                with blame("examples"):
                    more = list(islice(self.network.examples(generator), room))
                if not more:
                    raise Broken("examples gives no example, but the suite needs at least one")
                self._all += more
                self._first = self._first or len(more)
                if len(self._all) >= self._count:
                    break
        return self._all

    def over(self, probe: Callable[[int, Example], None], share: float = 1.0) -> int:
        """Run `probe` over examples; how many there were."""
        tried = 0
        for number, example in self.some(share):
            try:
                probe(number, example)
            except Broken as broken:
                raise Broken(f"{broken} ({describe(example)})") from None
            tried += 1
        return tried

    def build(self, number: int, example: Example, dtype: torch.dtype = torch.float64) -> Network:
        """The network in eval mode, with no parameter left at a constant."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            with blame("the constructor"):
                network = self.network(**example.config)
        return with_random_constants(network, seed=number).to(dtype).eval()


def describe(example: Example) -> str:
    said = [f"{name}={value}" for name, value in example.config.items()]
    return ", ".join(said + [f"{name} {tuple(value.shape)}" for name, value in example.tensors().items()])


def changed(example: Example, change: Callable[[Tensor], Tensor]) -> Example:
    """The same example with `change` applied to every input."""
    return _with(example, {name: change(value) for name, value in example.tensors().items()})


def _with(example: Example, tensors: dict[str, Tensor]) -> Example:
    # Past the checks of an example: what is made here may be of another precision, or wrong on purpose.
    other = object.__new__(Example)
    object.__setattr__(other, "config", example.config)
    object.__setattr__(other, "inputs", tuple(tensors[f"input {at}"] for at in range(len(example.inputs))))
    object.__setattr__(other, "keywords", {name: tensors[name] for name in example.keywords})
    return other


def _cast(example: Example, dtype: torch.dtype) -> Example:
    return changed(example, lambda value: value.to(dtype) if value.is_floating_point() else value)


def run(network: nn.Module, example: Example, deed: str = "forward") -> dict[str, Tensor]:
    """The tensors that `forward` (or `reference`) gives."""
    call = network if deed == "forward" else network.reference
    with blame(deed):
        found = parts(call(*example.inputs, **example.keywords))
    if not found:
        raise Broken(f"{deed} gave no tensor")
    return found


def shape(examples: Examples) -> str:
    """Every output is finite and batch first."""

    def probe(number: int, example: Example) -> None:
        with torch.no_grad():
            for name, part in run(examples.build(number, example), example).items():
                if part.ndim == 0 or part.shape[0] != example.batch:
                    raise Broken(
                        f"{name} is {tuple(part.shape)}, but outputs are batch first, here {example.batch}"
                    )
                if part.is_floating_point() and not part.isfinite().all():
                    raise Broken(f"{name} is not finite")

    return f"every output is finite and batch first in {examples.over(probe)} examples"


def reference(examples: Examples) -> str:
    """`forward` gives what `reference` gives, every output."""
    worst = 0.0

    def probe(number: int, example: Example) -> None:
        nonlocal worst
        network = examples.build(number, example)
        with torch.no_grad():
            fast, plain = run(network, example), run(network, example, "reference")
        worst = max(worst, hold_equal(fast, plain, TOLERANCE, "forward is off its reference"))

    tried = examples.over(probe)
    return f"forward equals reference within {worst:.1e} in {tried} examples"


def gradients(examples: Examples) -> str:
    """Gradients are finite and equal to the reference's, of the inputs and of every parameter."""
    worst = 0.0

    def probe(number: int, example: Example) -> None:
        nonlocal worst
        network = examples.build(number, example)
        found = _gradients(network, example, "forward")
        for name, gradient in found.items():
            if not gradient.isfinite().all():
                raise Broken(f"the gradient of {name} is not finite")
        right = _gradients(network, example, "reference")
        largest = max((float(gradient.abs().max()) for gradient in right.values()), default=0.0)
        for name, gradient in found.items():
            error = float((gradient - right[name]).abs().max()) / max(largest, 1.0)
            worst = max(worst, error)
            if not error <= 1e-7:
                spot = where(gradient, right[name])
                raise Broken(f"the gradient of {name} is off the reference's by {error:.2g}: {spot}")

    tried = examples.over(probe, 0.4)
    return f"gradients are finite and equal the reference's within {worst:.1e} in {tried} examples"


def _gradients(network: nn.Module, example: Example, deed: str) -> dict[str, Tensor]:
    """The gradients of a random projection of all floating outputs."""
    example = changed(
        example, lambda value: value.clone().requires_grad_() if value.is_floating_point() else value
    )
    wanted = {name: value for name, value in network.named_parameters() if value.requires_grad}
    wanted |= {name: value for name, value in example.tensors().items() if value.is_floating_point()}
    wanted = {name: value for name, value in wanted.items() if value.numel()}
    generator, total = torch.Generator().manual_seed(7), torch.zeros((), dtype=torch.float64)
    for part in run(network, example, deed).values():
        if part.is_floating_point():
            direction = torch.randn(part.shape, generator=generator, dtype=torch.float64)
            total = total + (part * direction).sum()
    if not total.requires_grad:
        raise Broken(f"the output of {deed} carries no gradient")
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(wanted.items(), found)
    }


def half_precision(examples: Examples) -> str:
    """bfloat16, and float16 where the device has it, stay close to float32."""
    dtypes = [dtype for dtype in (torch.bfloat16, torch.float16) if computes_in("cpu", dtype)]
    worst = dict.fromkeys(dtypes, 0.0)

    def probe(number: int, example: Example) -> None:
        for dtype in dtypes:
            name, given = str(dtype).removeprefix("torch."), _cast(example, dtype)
            with torch.no_grad():
                low = run(examples.build(number, example, dtype), given)
                exact = examples.build(number, example, dtype).float()
                right = run(exact, _cast(given, torch.float32))
            for part, wanted in right.items():
                if not wanted.is_floating_point() or wanted.numel() == 0:
                    continue
                if not low[part].isfinite().all():
                    raise Broken(f"in {name} {part} is not finite")
                spread = float(wanted.square().mean().sqrt() if wanted.numel() == 1 else wanted.std())
                error = float((low[part].float() - wanted).square().mean().sqrt()) / max(spread, 1e-3)
                worst[dtype] = max(worst[dtype], error)
                if not error <= HALF_ERROR:
                    raise Broken(f"in {name} {part} is off float32 by {error:.2g} standard deviations")

    examples.over(probe, 0.0)
    said = [f"{str(dtype).removeprefix('torch.')} {error:.1%}" for dtype, error in worst.items()]
    return f"error in standard deviations of the output: {', '.join(said)} (at most {HALF_ERROR:.0%})"


def batch(examples: Examples) -> str:
    """Samples never see each other: alone, beside others or beside copies, a sample gives the same."""
    batched = 0

    def probe(number: int, example: Example) -> None:
        nonlocal batched
        if example.batch == 1:
            return
        batched += 1
        network = examples.build(number, example)
        with torch.no_grad():
            together = run(network, example)
            if flat := [name for name, part in together.items() if part.ndim == 0]:
                raise Broken(f"{flat[0]} is one number for the whole batch")
            for at in {0, example.batch - 1}:
                mine = {name: part[at : at + 1] for name, part in together.items()}
                alone = run(network, changed(example, lambda value, at=at: value[at : at + 1]))
                hold_equal(
                    alone, mine, TOLERANCE, f"batch cross-talk: sample {at} alone is off the same in a batch"
                )
                copies = changed(example, lambda value, at=at: value[at : at + 1].expand_as(value).clone())
                others = {name: part[at : at + 1] for name, part in run(network, copies).items()}
                hold_equal(
                    others, mine, TOLERANCE, f"batch cross-talk: changing the others moved sample {at}"
                )
            turned = run(network, changed(example, lambda value: value.flip(0)))
            back = {name: part.flip(0) for name, part in turned.items()}
            hold_equal(
                back, together, TOLERANCE, "batch cross-talk: turning the batch round moved its samples"
            )

    examples.over(probe, 0.4)
    if not batched:
        raise Broken("no example has 2 samples or more, so nothing tells whether they see each other")
    return f"no sample saw another in {batched} examples"


def layout(examples: Examples) -> str:
    """How the inputs lie in memory makes no difference, and they are left as they were."""

    def scattered(value: Tensor) -> Tensor:
        """The same values, every second place of a larger tensor with its axes the other way round."""
        room = torch.zeros(*(2 * side for side in reversed(value.shape)), dtype=value.dtype)
        view = room.permute(*reversed(range(value.ndim)))[tuple(slice(None, None, 2) for _ in value.shape)]
        return view.copy_(value)

    def probe(number: int, example: Example) -> None:
        network, kept = examples.build(number, example), changed(example, Tensor.clone)
        with torch.no_grad():
            right = run(network, example)
            for name, value in example.tensors().items():
                if not torch.equal(value, kept.tensors()[name]):
                    raise Broken(f"forward wrote into {name}")
            found = run(network, changed(example, scattered))
        hold_equal(found, right, TOLERANCE, "inputs that are not contiguous give something else")

    return f"the inputs' layout makes no difference in {examples.over(probe, 0.2)} examples"


def stateless(examples: Examples) -> str:
    """In eval mode a call leaves nothing behind and draws no random numbers."""

    def probe(number: int, example: Example) -> None:
        network = examples.build(number, example)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        other = changed(example, lambda value: value.flip(0)[: max(1, value.shape[0] - 1)])
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            first = {name: part.clone() for name, part in run(network, example).items()}
            torch.manual_seed(2)
            run(network, other)
            again = run(network, example)
        hold_equal(again, first, 1e-12, "the same input gives something else the second time")
        for name, value in network.state_dict().items():
            if not torch.equal(value, before[name]):
                raise Broken(f"a call in eval mode changed {name}")

    return f"the same input gives the same output in {examples.over(probe, 0.3)} examples"


def state_dict(examples: Examples) -> str:
    """A second network with the first one's weights does the same."""

    def probe(number: int, example: Example) -> None:
        network, other = examples.build(number, example), examples.build(number + 10_000, example)
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        try:
            other.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise Broken(f"its own state_dict does not load: {' '.join(str(error).split())[:200]}") from error
        with torch.no_grad():
            found, right = run(other, example), run(network, example)
        deed = "something that matters is not in the state_dict: a second network with the same one is off"
        hold_equal(found, right, TOLERANCE, deed)

    return f"saved and loaded, it does the same in {examples.over(probe, 0.3)} examples"


def errors(examples: Examples) -> str:
    """Inputs of a wrong rank or width raise a `ValueError` of one sentence."""
    tried = 0

    def probe(number: int, example: Example) -> None:
        nonlocal tried
        network = examples.build(number, example)
        learns = any(True for _ in network.parameters())

        def refuses(wrong: dict[str, Tensor], said: str, accepted: bool = True) -> bool:
            nonlocal tried
            tried += 1
            call = _with(example, {**example.tensors(), **wrong})
            attempt = (said, lambda: network(*call.inputs, **call.keywords))
            return hold_to_one_sentence(attempt, accepted=accepted)

        for name, value in example.tensors().items():
            refuses({name: value[0]}, f"{name} of a wrong rank", accepted=False)
            refused = {}
            for axis in range(1, value.ndim):
                doubled = {name: torch.cat([value, value], axis)}
                refused[axis] = refuses(doubled, f"{name} doubled on axis {axis}")
            # Which axes have a free length is the network's to say. The features have none: they are the
            # last axis, or the first behind the batch (whose length other inputs may share).
            if value.is_floating_point() and value.ndim >= 3 and not refused[value.ndim - 1]:
                all_doubled = {
                    each: torch.cat([part, part], 1)
                    for each, part in example.tensors().items()
                    if part.ndim > 1
                }
                if learns and not refuses(all_doubled, "axis 1 of all inputs doubled"):
                    raise Broken(f"{name} of a wrong width is accepted in silence")

    examples.over(probe, 0.0)
    return f"{tried} wrong inputs get one sentence each, or are taken where a length is free"
