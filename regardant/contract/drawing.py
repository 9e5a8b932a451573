"""Configurations: what one is, how hypothesis draws them, and how a property is tried over many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import hypothesis
import torch
from hypothesis import strategies

from regardant.contract.report import Broken, Skip
from regardant.core.pattern import (
    Blocks,
    Causal,
    Dilated,
    Document,
    Pattern,
    PerHead,
    Prefix,
    Sink,
    Window,
)

if TYPE_CHECKING:
    from regardant.contract.subject import Subject

LENGTHS = (1, 2, 17, 64, 257)
"""The lengths that every sequence layer is tried at; the others are drawn."""

DRAWN_LENGTHS = (1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 33, 64, 65, 101, 128, 257)
DRAWN_SIDES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16)
DRAWN_VOLUME_SIDES = (1, 2, 3, 4, 5, 7)

SIZES = {
    "sequence": [(length,) for length in LENGTHS],
    "grid": [(1, 1), (7, 13), (33, 64)],
    "gate": [(1, 1), (7, 13), (33, 64)],
    "volume": [(1, 1, 1), (3, 4, 5), (6, 7, 9)],
}
"""The sizes that every layer of a kind is tried at; "volume" is for grid mixers on maps of three axes."""

PATTERNS: Mapping[str, Callable[[int], Pattern | None]] = {
    "none": lambda heads: None,
    "Window(3)": lambda heads: Window(3),
    "Blocks(8)": lambda heads: Blocks(8),
    "Sink(2) | Window(4)": lambda heads: Sink(2) | Window(4),
    "Dilated(2, 3)": lambda heads: Dilated(2, 3),
    "Document": lambda heads: Document(torch.arange(4096) // 7),
    "Prefix(5)": lambda heads: Prefix(5),
    "~Sink(1)": lambda heads: ~Sink(1),
    "PerHead": lambda heads: PerHead([Window(1 + 2 * head) for head in range(heads)]),
    "Causal & Window(5)": lambda heads: Causal() & Window(5),
}


@dataclass(frozen=True)
class Case:
    """One configuration of a layer and one shape of its input."""

    size: tuple[int, ...]
    """(length,) of a sequence, (height, width) of a map."""
    batch: int = 2
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int = 8
    causal: bool | None = None
    """None where the layer does not say."""
    across: bool = False
    keys: int = 0
    """The length of the context of a cross-attention layer."""
    pattern: str = "none"
    position: str = "none"
    options: tuple[tuple[str, Any], ...] = ()
    """The system's own options, where they are not as they come."""
    seed: int = 0

    @property
    def length(self) -> int:
        return self.size[0]

    def __str__(self) -> str:
        said = [
            f"length {self.length}" if len(self.size) == 1 else f"map {'×'.join(map(str, self.size))}",
            f"batch {self.batch}",
        ]
        if self.heads is not None:
            said.append(f"heads {self.heads}")
        if self.kv_heads is not None:
            said.append(f"kv_heads {self.kv_heads}")
        if self.across:
            said.append(f"context of {self.keys}")
        if self.causal is not None:
            said.append("causal" if self.causal else "not causal")
        if self.pattern != "none":
            said.append(f"pattern {self.pattern}")
        if self.position != "none":
            said.append(f"position {self.position}")
        said += [f"{name}={value}" for name, value in self.options]
        if self.seed:
            said.append(f"seed {self.seed}")
        return ", ".join(said)


@dataclass(frozen=True)
class Use:
    """One of the four uses of attention; `causal` is None where the layer does not say."""

    causal: bool | None
    across: bool = False

    def __str__(self) -> str:
        order = {True: "causal ", False: "noncausal ", None: ""}[self.causal]
        return f"{order}{'cross' if self.across else 'self'}-attention"


class Refused(Exception):
    """The system refuses these options of its own by a `ValueError`, which it may."""


Probe = Callable[[Case], None]


class Trials:
    """Tries a property of one subject over explicit cases and over drawn ones."""

    def __init__(self, subject: Subject, *, examples: int, seed: int):
        self.subject, self.examples, self.seed = subject, examples, seed
        self.tried = 0

    def uses(self, *, causal: bool | None = None, across: bool | None = None) -> list[Use]:
        """The subject's uses of that sort, or `Skip`."""
        found = [
            use
            for use in self.subject.uses
            if (causal is None or use.causal is causal) and (across is None or use.across is across)
        ]
        if not found:
            wanted = {True: "causal ", False: "noncausal ", None: ""}[causal]
            kind = {True: "cross-", False: "self-", None: ""}[across]
            raise Skip(f"it has no {wanted}{kind}attention")
        return found

    def cases(self, uses: Sequence[Use], sizes: Iterable[tuple[int, ...]] | None = None) -> list[Case]:
        """The explicit cases: every size under every use, with few and with many heads."""
        subject = self.subject
        cases = []
        for size in subject.sizes if sizes is None else sizes:
            for use in uses:
                plain = Case(size, heads=subject.plain_heads, causal=use.causal, across=use.across)
                plain = replace(plain, keys=size[0] + 3 if use.across else 0)
                cases.append(plain)
                if subject.varies_kv_heads:
                    cases.append(replace(plain, heads=4, kv_heads=2))
        return cases

    def over(
        self, probe: Probe, uses: Sequence[Use], *, explicit: Iterable[Case] = (), share: float = 1.0,
        patterns: bool = True, fixed: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Run `probe` over the explicit cases, then over `share` of the drawn ones.

        `fixed` holds fields of every drawn case still. A failure is shrunk before it is raised.
        """
        for case in explicit:
            self.one(probe, case)
        count = max(1, round(self.examples * share))
        last: list[Broken] = []

        @hypothesis.seed(self.seed)
        @hypothesis.settings(
            max_examples=count, database=None, derandomize=False, deadline=None, print_blob=False,
            report_multiple_bugs=False,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            suppress_health_check=list(hypothesis.HealthCheck), verbosity=hypothesis.Verbosity.quiet,
        )  # fmt: skip
        @hypothesis.given(drawn(self.subject, uses, patterns=patterns))
        def each(case: Case) -> None:
            try:
                self.one(probe, replace(case, **(fixed or {})))
            except Refused:
                hypothesis.reject()
            except Broken as broken:
                last[:] = [broken]
                raise

        try:
            each()
        except hypothesis.errors.Flaky:
            raise Broken(f"{last[-1]}; it does not fail every time, so something is random") from None

    def one(self, probe: Probe, case: Case) -> None:
        try:
            probe(case)
        except Broken as broken:
            raise Broken(f"{broken} ({case})") from None
        self.tried += 1


@strategies.composite
def drawn(draw: strategies.DrawFn, subject: Subject, uses: Sequence[Use], *, patterns: bool) -> Case:
    """Cases of a subject, the simple ones first: hypothesis shrinks towards them."""

    def one_of(values: Sequence[Any]) -> Any:
        return draw(strategies.sampled_from(values)) if len(values) > 1 else values[0]

    use = one_of(uses)
    heads = one_of(subject.head_counts)
    kv_heads = one_of([None, *subject.kv_head_counts(heads)])
    own = [(name, value) for name, values in subject.options.items() if (value := one_of(values)) is not None]
    return Case(
        size=tuple(one_of(subject.drawn_sizes) for _ in subject.sizes[0]),
        batch=one_of((2, 1, 3)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=one_of(subject.head_dims),
        causal=use.causal,
        across=use.across,
        keys=one_of((1, 4, 17, 33)) if use.across else 0,
        pattern=one_of(subject.patterns) if patterns and not use.across else "none",
        position=one_of(subject.positions) if not use.across else "none",
        options=tuple(own),
        seed=one_of((0, 1, 2, 3)),
    )
