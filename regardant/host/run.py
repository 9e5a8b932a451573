"""What is going on in the model while its attention is called: which step, what is padding, who is who."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.host.call import Call
from regardant.host.roles import Roles
from regardant.host.site import Site


class Branch:
    """A second text that is read and continued beside the first: its cache, and what is kept about it."""

    def __init__(self, name: str) -> None:
        self.name, self.cache = name, None
        self.held = dict(vars(Run()))

    def reorder(self, beams: Int[Tensor, "b"]) -> None:
        """Follow the beams of a beam search."""
        if self.cache is not None:
            # The class's own method: the cache's may be watched, and would come back here.
            type(self.cache).reorder_cache(self.cache, beams)
        Run.reorder_memory(self.held["_memory"], beams)


class Run:
    """The forward passes of a model since its last prompt.

    `step` is 0 for the prompt and counts the passes that follow with its cache; `past` is how many tokens
    that cache held before the present pass, `length` how many there are with it. `real` is the host's mask
    of tokens [b, length], False on padding, or None. `ids` are the present pass's tokens, where the host
    was given tokens. `call` is the attention that is being computed, at the stages `logits` and `weights`.
    `memory(edit, site)` is a place to keep things between passes: it is emptied when a new prompt begins,
    and its tensors (batch first) follow the beams of a beam search.
    """

    def __init__(self, *, roles: Roles | None = None, generator: torch.Generator | None = None) -> None:
        self.step, self.past, self.length = 0, 0, 0
        self.batch: int | None = None
        self.real: Bool[Tensor, "b n"] | None = None
        self.ids: Int[Tensor, "b m"] | None = None
        self.roles, self.generator = roles, generator
        self.call: Call | None = None
        self.timestep: Any = None
        self._stepped = False
        self.model: nn.Module | None = None
        """The model that runs."""
        self.branch = "main"
        self._memory: dict[tuple[int, str], dict[str, Any]] = defaultdict(dict)

    @property
    def decoding(self) -> bool:
        """Whether this pass adds one token to a cache."""
        return self.past > 0 and self.length - self.past == 1

    def begin(
        self,
        *,
        past: int,
        length: int,
        batch: int | None,
        real: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> None:
        """A pass over the tokens from `past` to `length`."""
        if past == 0:
            self.step = 0
            self._memory.clear()
        else:
            self.step += 1
        self.past, self.length, self.batch, self.real, self.ids = past, length, batch, real, ids

    def advance(self, *, batch: int, length: int, timestep: Any = None) -> None:
        """A pass of a model that refines one thing step by step (diffusion): what is kept, stays."""
        self.step, self._stepped = (self.step + 1 if self._stepped else 0), True
        self.past, self.length, self.batch, self.real, self.ids = 0, length, batch, None, None
        self.timestep = timestep

    def memory(self, owner: object, site: Site | None = None) -> dict[str, Any]:
        """What `owner` (an edit, a lens) keeps about a site while a text is read and continued."""
        return self._memory[id(owner), "" if site is None else site.name]

    def reorder(self, beams: Int[Tensor, "b"]) -> None:
        """Beam search goes on with other beams: what is kept a sample follows."""
        self.reorder_memory(self._memory, beams)

    @staticmethod
    def reorder_memory(memory: Mapping[Any, dict[str, Any]], beams: Int[Tensor, "b"]) -> None:
        for held in memory.values():
            for name, value in held.items():
                if isinstance(value, Tensor) and value.ndim and value.shape[0] == len(beams):
                    held[name] = value.index_select(0, beams.to(value.device))
                elif isinstance(value, Branch):
                    value.reorder(beams)

    @contextmanager
    def aside(self, branch: Branch) -> Iterator[None]:
        """Another branch's pass in between, with its own cache and its own memory; then all as it was."""
        main = dict(vars(self))
        vars(self).update(branch.held)
        self.branch, self.roles, self.model = branch.name, None, main["model"]
        try:
            yield
        finally:
            branch.held = dict(vars(self))
            vars(self).clear()
            vars(self).update(main)

    def role(self, name: str, *, keys: int | None = None) -> Bool[Tensor, "b n"]:
        """Which of the first `keys` places of the text (all so far) have this role."""
        require(
            self.roles is not None,
            f"the role {name!r} is asked for, but no roles were given: apply(model, …, roles=Roles(…))",
        )
        mask = self.roles.mask(name, self.length if keys is None else keys, batch=self.batch)
        return mask.to(self._device())

    def _device(self) -> torch.device:
        """Where the tokens of the present pass are."""
        for tokens in (self.ids, self.real):
            if tokens is not None:
                return tokens.device
        weights = None if self.model is None else next(self.model.parameters(), None)
        return torch.device("cpu") if weights is None else weights.device

    def first_real(self) -> Int[Tensor, "b"] | None:
        """The place of each sample's first token that is no padding; None where all begin at 0."""
        if self.real is None or bool(self.real[:, 0].all()):
            return None
        return self.real.to(torch.int64).argmax(dim=1)
