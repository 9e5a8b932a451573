"""The suite of what has known answers: lenses, ways to train, layers on many devices."""

from __future__ import annotations

import random

import torch

from regardant.contract.brought import Brought
from regardant.contract.report import Broken
from regardant.contract.subject import blame
from regardant.core.known_answer import KnownAnswer

SHARE = 0.2
"""Seeds for every example that a suite is asked for: an answer may need a training."""


class Answers:
    """The answers of a system, for several seeds; worked out once for all properties."""

    def __init__(self, subject: Brought, *, examples: int, seed: int):
        self.subject = subject
        self.seeds = [1000 * seed + number for number in range(max(2, round(SHARE * examples)))]
        self._known: dict[int, list[KnownAnswer]] = {}
        self._moved: str | None = None

    def of(self, seed: int) -> list[KnownAnswer]:
        if seed not in self._known:
            self._known[seed] = self.work_out(seed)
        return self._known[seed]

    def work_out(self, seed: int, *, elsewhere: int = 1) -> list[KnownAnswer]:
        """The answers, with the global generators seeded by `elsewhere`; what was left changed is noted."""
        kept = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(elsewhere)
            random.seed(elsewhere)
            before = _surroundings()
            try:
                with blame(f"known_answers (seed {seed})"):
                    generator = torch.Generator().manual_seed(seed)
                    found = list(self.subject.maker.known_answers(generator))
                after = _surroundings()
            finally:
                random.setstate(kept)
                torch.set_default_dtype(before["the default dtype"])
                torch.set_grad_enabled(before["whether gradients are on"])
        changed = [name for name, value in after.items() if value != before[name]]
        if changed and self._moved is None:
            self._moved = f"seed {seed} left {', '.join(changed)} changed"
        return found

    @property
    def moved(self) -> str | None:
        """What the first working out that changed something around it has changed."""
        for seed in self.seeds:
            self.of(seed)
        return self._moved


def _surroundings() -> dict[str, object]:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "the global generator": bytes(torch.get_rng_state().numpy()),
        "Python's generator": random.getstate(),
        "the default dtype": torch.get_default_dtype(),
        "whether gradients are on": torch.is_grad_enabled(),
        "a process group": distributed,
    }


def answers(known: Answers) -> str:
    """Every known answer is found within its tolerance, whatever the seed."""
    count, loosest = 0, 0.0
    for seed in known.seeds:
        found = known.of(seed)
        if not found:
            raise Broken(f"known_answers gives none (seed {seed})")
        for answer in found:
            if not isinstance(answer, KnownAnswer):
                raise Broken(
                    f"known_answers gives a {type(answer).__name__}, not a KnownAnswer (seed {seed})"
                )
            error = answer.error()
            if not error <= answer.tolerance:
                raise Broken(
                    f"{answer.what}: off what is known by {error:.3g}, "
                    f"allowed {answer.tolerance:.3g} (seed {seed})"
                )
            loosest = max(loosest, answer.tolerance)
            count += 1
    return f"{count} known answers found with {len(known.seeds)} seeds, the loosest within {loosest:.3g}"


def generator(known: Answers) -> str:
    """The same seed gives the same answers to the last bit."""
    seed = known.seeds[0]
    first, again = known.of(seed), known.work_out(seed, elsewhere=2)
    if [answer.what for answer in first] != [answer.what for answer in again]:
        raise Broken("the same seed gives other cases the second time")
    for one, other in zip(first, again):
        for name in ("found", "expected"):
            before, after = torch.as_tensor(getattr(one, name)), torch.as_tensor(getattr(other, name))
            same = before.shape == after.shape and torch.allclose(before, after, 0, 0, equal_nan=True)
            if not same:
                raise Broken(f"{one.what}: what is {name} differs the second time, with the same seed")
    return f"the same generator gives the same {len(first)} answers, whatever the global seed"


def untouched(known: Answers) -> str:
    """The global generators, the default dtype and the process group are left as they were."""
    if known.moved is not None:
        raise Broken(known.moved)
    return "the global generators, the default dtype, gradient mode and process group are left as they were"
