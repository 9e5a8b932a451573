"""What a layer may keep and what it may not: weights yes, anything of a call no."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from regardant.contract.drawing import Case, Trials
from regardant.contract.equality import off
from regardant.contract.report import Broken
from regardant.contract.subject import Inputs


def state_dict(trials: Trials) -> str:
    """A second layer with the first one's weights does the same."""
    subject = trials.subject

    def probe(case: Case) -> None:
        layer, inputs = subject.build(case), subject.inputs(case)
        weights = {name: value.clone() for name, value in layer.state_dict().items()}
        other = subject.build(case, seed=case.seed + 17)
        if not subject.remakes:
            with torch.no_grad():
                for value in (*other.parameters(), *other.buffers()):
                    value.zero_()
        try:
            other.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise Broken(f"its own state_dict does not load: {' '.join(str(error).split())[:200]}") from error
        with torch.no_grad():
            error = off(subject.forward(other, inputs), subject.forward(layer, inputs))
        if error > subject.tolerance:
            raise Broken(
                f"a second layer with the same state_dict differs by {error:.2g}: "
                "something that matters is not in the state_dict"
            )

    uses = trials.uses()
    trials.over(probe, uses, explicit=trials.cases(uses, subject.small_sizes[-1:]), share=0.3)
    return f"saved and loaded, it does the same in {trials.tried} configurations"


def stateless(trials: Trials) -> str:
    """In eval mode a call leaves nothing behind and draws no random numbers."""
    subject = trials.subject

    def probe(case: Case) -> None:
        layer, inputs = subject.build(case), subject.inputs(case)
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            first = subject.forward(layer, inputs)
            torch.manual_seed(2)
            subject.forward(layer, subject.inputs(case, seed=case.seed + 3).map(lambda part: part * 3))
            longer = replace(case, size=tuple(side + 3 for side in case.size))
            if subject.takes_size(longer.size):
                subject.forward(layer, subject.inputs(longer))
            again = subject.forward(layer, inputs)
        error = off(again, first)
        if error > 1e-12:
            raise Broken(f"the same input gives something else the second time, by {error:.2g}")
        for name, value in layer.state_dict().items():
            if not torch.equal(value, before[name]):
                raise Broken(f"a call in eval mode changed {name}")

    uses = trials.uses()
    trials.over(probe, uses, explicit=trials.cases(uses, subject.small_sizes[-1:]), share=0.3)
    return f"the same input gives the same output in {trials.tried} configurations"


def layout(trials: Trials) -> str:
    """How the input lies in memory makes no difference, and the input is left as it was."""
    subject = trials.subject

    def scattered(part: Tensor) -> Tensor:
        """The same values, every second place of a larger tensor with its axes the other way round."""
        room = torch.zeros(*(2 * side for side in reversed(part.shape)), dtype=part.dtype)
        view = room.permute(*reversed(range(part.ndim)))[tuple(slice(None, None, 2) for _ in part.shape)]
        return view.copy_(part)

    def probe(case: Case) -> None:
        layer, inputs = subject.build(case), subject.inputs(case)
        before = inputs.map(Tensor.clone)
        with torch.no_grad():
            y = subject.forward(layer, inputs)
            if not torch.equal(inputs.x, before.x):
                raise Broken("forward wrote into its input")
            for name, laid in _layouts(inputs, scattered):
                error = off(subject.forward(layer, laid), y)
                if error > subject.tolerance:
                    raise Broken(f"an input that is {name} gives something else, by {error:.2g}")

    uses = trials.uses()
    trials.over(probe, uses, explicit=trials.cases(uses, subject.small_sizes[-1:]), share=0.2)
    return f"the input's layout makes no difference in {trials.tried} configurations"


def _layouts(inputs: Inputs, scattered) -> list[tuple[str, Inputs]]:
    found = [("not contiguous", inputs.map(scattered))]
    if inputs.x.ndim == 4:
        found.append(("channels_last", inputs.map(lambda p: p.contiguous(memory_format=torch.channels_last))))
    return found
