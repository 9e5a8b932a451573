"""`with regardant.apply(model, *edits):` edits at work, in order, until the end of the block."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

from torch import nn

from regardant.core.errors import require
from regardant.edit.edit import Edit
from regardant.host.roles import Roles
from regardant.host.run import Run
from regardant.host.seam import Seam


class apply:
    """Edits on a model as a context manager.

        with regardant.apply(model, ACT(), roles=Roles.of_ids(ids, image=…)) as applied:
            model.generate(…)
        applied.calls          # how often each site ran fused, written out or replaced

    All that can be refused is refused here, before any forward pass. An edit that never fired by the end
    raises. On exit, also by an exception, the model is what it was.
    """

    def __init__(self, model: nn.Module, *edits: Edit, roles: Roles | None = None):
        require(len(edits) > 0, "edits is empty, but at least one must be given")
        for edit in edits:
            require(isinstance(edit, Edit), f"an edit is wanted, but {edit!r} is {type(edit).__name__}")
        self.edits, self._roles = edits, roles
        self._seam = Seam.of(model)
        for edit in edits:
            edit.prepare(self._seam.host.sites)
        _refuse_conflicts([*(e for e in self._seam.actors if isinstance(e, Edit)), *edits], self._seam)

    def __enter__(self) -> Self:
        # The seam of the model may have come or gone since.
        self._seam = Seam.of(self._seam.model)
        self._before = {id(edit): Counter(self._seam.fired[id(edit)]) for edit in self.edits}
        self._calls_before = Counter(self._seam.calls)
        self._seam.enter(self.edits, roles=self._roles)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._seam.leave(self.edits, roles=self._roles)
        if error is None:
            for edit in self.edits:
                require(
                    edit.neutral() or self.fired(edit).total() > 0,
                    f"{type(edit).__name__} never fired: no pass of the model reached a place it touches",
                )

    def fired(self, edit: Edit) -> Counter[str]:
        """How often each stage of an edit was called here."""
        return self._seam.fired[id(edit)] - self._before[id(edit)]

    @property
    def run(self) -> Run:
        """The passes that the edits see, and what they keep between them."""
        return self._seam.run

    @property
    def calls(self) -> Counter[tuple[str, str]]:
        """How often (a site's name, "fused" | "written" | "replaced") ran here."""
        return self._seam.calls - self._calls_before


def _refuse_conflicts(edits: list[Edit], seam: Seam) -> None:
    """Two edits that replace the same computation; or one that replaces what another edits inside."""
    for site in seam.host.sites:
        stages = [(edit, edit.stages(site)) for edit in edits]
        replacing = [edit for edit, own in stages if "attend" in own]
        inside = [edit for edit, own in stages if own & {"logits", "weights"}]
        for place, first in enumerate(replacing):
            for second in replacing[place + 1 :]:
                require(
                    not _meet(first, second),
                    f"{_name(first)} and {_name(second)} both replace the attention of {site}",
                )
            for second in inside:
                require(
                    first is second or not _meet(first, second),
                    f"{_name(first)} replaces the attention of {site}, so that {_name(second)} "
                    "finds no weights there to edit",
                )


def _name(edit: Edit) -> str:
    return type(edit).__name__


def _meet(first: Edit, second: Edit) -> bool:
    """Whether both act in the same passes."""
    return bool(set(first.passes) & set(second.passes))
