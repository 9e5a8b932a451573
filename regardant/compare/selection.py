"""Which systems a comparison is between: by name, by kind, or the ones that are worth a first look.

`a+b` is a layout: layers of a and of b by turns. Names may carry options (`spec.py`). No torch is imported
for systems of this library.
"""

from __future__ import annotations

from collections.abc import Sequence

from regardant.atlas import catalog
from regardant.compare.findings import BASELINE, System
from regardant.compare.spec import Spec
from regardant.core.errors import require, unknown

KINDS = ("sequence", "grid", "gate")

LAYOUTS = {"based-like": "linear-attention@features=taylor,states=8+sliding-window@window=16"}
"""Layouts that have a name: Taylor's linear attention with small windows (Based: Arora et al., 2024)."""

DEFAULTS = {
    "sequence": (
        "softmax",
        "moh",
        "sliding-window@window=16",
        "based-like",
        "linear-attention",
        "lightning-attention-2",
        "rg-lru",
        "aaren",
        "base-conv",
    ),
    "grid": (
        "softmax",
        "faster-neighborhood-attention",
        "axial-transformer",
        "ccnet",
        "maxvit-block",
        "davit-channel",
    ),
}
"""One for each way that attention is made cheaper, and what came after it."""


def select(names: Sequence[str], kind: str | None) -> tuple[System, ...]:
    """The systems, the baseline first. They are of one kind; the baseline goes with all."""
    require(not names or kind is None, f"kind is {kind!r}, but systems are named: give one or the other")
    if not names:
        kind = kind or "sequence"
        if kind not in KINDS:
            raise unknown("kind that can be compared", kind, KINDS)
        names = DEFAULTS.get(kind) or catalog.names(kind)
    systems = {name: _system(name) for name in dict.fromkeys([BASELINE, *names])}
    kinds = sorted({each.kind for name, each in systems.items() if name != BASELINE})
    require(
        len(kinds) <= 1,
        f"the systems are of the kinds {' and '.join(kinds)}, but what is compared is of one",
    )
    return tuple(systems.values())


def layers_of(name: str) -> tuple[str, ...]:
    """The mixers of a layout by turns, with their options; of any other name, itself alone."""
    return tuple(LAYOUTS.get(name, name).split("+"))


def kind_of(systems: Sequence[System]) -> str:
    """Of the comparison: that of the systems beside the baseline."""
    return next((each.kind for each in systems if each.name != BASELINE), "sequence")


def _system(name: str) -> System:
    specs = layers_of(name)
    plain = tuple(Spec.of(spec).name for spec in specs)
    kinds = {kind_of_mixer(part) for part in plain}
    require(len(kinds) == 1, f"{name!r} is a layout of several kinds, but layers by turns are of one")
    return System(name, kinds.pop(), plain, specs)


def check_options(spec: str) -> None:
    """Refuses options that a mixer's constructor does not take, before all is measured. Imports torch."""
    from regardant.compare.workload import Setting, configure, settle

    setting = settle(Setting(spec))
    configure(spec, dim=setting.dim, heads=setting.heads, causal=setting.causal)


def kind_of_mixer(name: str) -> str:
    """Of a system without options; refuses what is neither a system of this library nor anybody's class."""
    if ":" in name:
        from regardant.compare.workload import kind_of

        return kind_of(name)
    try:
        found = catalog.system(name)
    except ValueError:
        if name in {each.slug for each in catalog.cards()}:
            raise
        raise unknown("system", name, [*catalog.names(), *LAYOUTS]) from None
    require(
        found.kind in KINDS,
        f"{name!r} is of kind {found.kind}, but what is compared are systems of {', '.join(KINDS)}",
    )
    return found.kind
