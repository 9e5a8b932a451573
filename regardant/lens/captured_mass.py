"""Captured mass: how much of a model's own attention falls on the keys that a choice would read.

    mass(h, i) = Σ_{j chosen for i} A_hij,    A = the unedited model's weights

Several choices are measured in one pass, on the same queries and keys, while the forward stays fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.edit.language.causal_text import texts_of
from regardant.edit.language.key_choice import KeyChoice
from regardant.edit.language.oracle_keys import OracleKeys
from regardant.edit.language.sink_and_window import SinkAndWindow
from regardant.host.seam import Seam
from regardant.host.site import Site
from regardant.world.families import FAMILIES

Masses = dict[str, Float[Tensor, "sites heads"]]


class CapturedMass:
    """The mean mass of the last `rows` queries of a prompt, by choice, site and query head."""

    def __init__(self, choices: Mapping[str, KeyChoice], *, rows: int = 64) -> None:
        require(len(choices) > 0, "choices is empty, but at least one is to be measured")
        require(rows >= 1, f"rows is {rows}, but at least the last query is measured")
        self.choices, self.rows = choices, rows
        self._found: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def measure(self, model: nn.Module, **inputs: Any) -> Masses:
        """One pass over these inputs."""
        with self.reading(model):
            model(**inputs)
        return self.masses()

    @contextmanager
    def reading(self, model: nn.Module) -> Iterator[None]:
        """Inside, a pass of the model is measured, whatever else it is for."""
        seam = Seam.of(model)
        for choice in self.choices.values():
            choice.prepare(seam.host.sites)
        self._found = {name: [] for name in self.choices}
        seam.enter([self])
        try:
            yield
        finally:
            seam.leave([self])

    def masses(self) -> Masses:
        """What the last pass inside `reading` captured."""
        return {name: torch.stack(found) for name, found in self._found.items()}

    def stages(self, site: Site) -> frozenset[str]:
        return frozenset({"read"} if any(c.touches(site) for c in self.choices.values()) else ())

    def read(self, call, heads, weights, site, run) -> None:
        masses: dict[str, list[Tensor]] = {name: [] for name in self.choices}
        for text in texts_of(call, run, self):
            last = text.last(self.rows)
            own = last.logits().masked_fill(~last.earlier(), -inf).softmax(-1)
            for name, choice in self.choices.items():
                if choice.touches(site):
                    masses[name].append((own * choice.seen(last, site)).sum(-1).mean(-1))
        for name, parts in masses.items():
            if parts:
                self._found[name].append(torch.cat(parts).mean(0))

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """A model without queries attends evenly; an ample choice captures all; nothing captures more than
        the oracle."""
        family, length, rows = FAMILIES["llama"], 24, 6
        model = family.make(seed=int(torch.randint(1000, (), generator=generator)))
        ids = torch.randint(3, 90, (2, length), generator=generator)
        choices = {
            "few": SinkAndWindow(budget=5, sinks=2),
            "all": SinkAndWindow(budget=length),
            "best": OracleKeys(budget=5),
        }
        found = cls(choices, rows=rows).measure(model, input_ids=ids)
        yield KnownAnswer("an ample choice", found["all"], torch.ones_like(found["all"]), 1e-5)
        most = (found["few"] - found["best"]).clamp(min=0).max()
        yield KnownAnswer("more than the oracle's", most, torch.zeros(()), 1e-6)
        for site in Seam.of(model).host.sites:
            site.module.q_proj.weight.data.zero_()
        even = cls(choices, rows=rows).measure(model, input_ids=ids)
        expected = sum(5 / (place + 1) for place in range(length - rows, length)) / rows
        for name in ("few", "best"):
            yield KnownAnswer(
                f"even attention, {name}", even[name], torch.full_like(even[name], expected), 1e-5
            )
