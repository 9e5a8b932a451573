"""The side channel of a forward pass: what a layer has to say besides its output.

    record = Record()
    y = layer(x, record=record)
    loss = task_loss + record.loss()
    …                                   # backward, optimiser's step
    record.settle()

One record may pass through many layers; nothing is left behind on the modules.

`Record(generator=…)` also tells layers that draw (which keys to see) to do so, and from where. And what a
layer puts into `handed`, layers after it in the same pass may take: attention that is computed once.
"""

from collections import defaultdict
from collections.abc import Callable

from torch import Generator, Tensor


class Record:
    """Auxiliary losses (already weighted) and named observations, in the order of the layers.

    Without `noting`, observations are not kept: for a pass that nobody looks at.
    """

    def __init__(self, *, generator: Generator | None = None, noting: bool = True) -> None:
        self.generator, self.noting = generator, noting
        self.losses: dict[str, list[Tensor]] = defaultdict(list)
        self.seen: dict[str, list[Tensor]] = defaultdict(list)
        self.handed: dict[str, Tensor] = {}
        self._deferred: dict[int, Callable[[], None]] = {}

    def add_loss(self, name: str, value: Tensor) -> None:
        self.losses[name].append(value)

    def note(self, name: str, value: Tensor) -> None:
        if self.noting:
            self.seen[name].append(value)

    def loss(self) -> Tensor | float:
        """The sum of all auxiliary losses; 0.0 when no layer had one."""
        return sum((value for values in self.losses.values() for value in values), start=0.0)

    def defer(self, owner: object, change: Callable[[], None]) -> None:
        """A change to a layer's buffers that is no gradient (moving averages, centroids), for `settle`.

        Each owner has one: a pass that is computed again on the way back (gradient checkpointing) meets
        the buffers as they were, and counts once.
        """
        self._deferred[id(owner)] = change

    def settle(self) -> None:
        """Make the deferred changes: once, after the optimiser's step."""
        for change in self._deferred.values():
            change()
        self._deferred.clear()
