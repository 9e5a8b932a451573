"""The residual stream between a block's attention and its feed-forward, changed on its way.

Of blocks that norm the stream in front of either branch,

    m = x + attention(norm x)        y = m + feed(norm m)

the second norm hears m. An edit's `between` makes m′ of it: the norm is handed m′, and m′ - m is added to
what leaves the block, so that y = m′ + feed(norm m′) whatever the block does in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from regardant.core.errors import require
from regardant.host.run import Run
from regardant.host.site import Site

NORMS_OF_A_BLOCK = 2


class Between:
    """Hooks on one block for the edits that change its stream there."""

    def __init__(self, site: Site, actors: Sequence[Any], run: Run, count: Callable[[Any, str], None]):
        self._site, self._actors, self._run, self._count = site, actors, run, count
        self._entered: Tensor | None = None
        self._difference: Tensor | float = 0.0
        self._handles = [
            site.block.register_forward_pre_hook(self._enter, with_kwargs=True),
            second_norm(site).register_forward_pre_hook(self._change),
            site.block.register_forward_hook(self._add),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._entered = next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))

    def _change(self, norm: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (before,) = args
        require(
            before is not self._entered,
            f"the second norm of {type(self._site.block).__name__} at {self._site} hears what came into the "
            "block, so there is no stream between its attention and its feed-forward",
        )
        after = before
        for actor in self._actors:
            after = actor.between(after, self._site, self._run)
            self._count(actor, "between")
        self._difference = after - before
        return (after,)

    def _add(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        stream = output if isinstance(output, Tensor) else output[0]
        stream = stream + self._difference
        self._entered, self._difference = None, 0.0
        return stream if isinstance(output, Tensor) else type(output)((stream, *output[1:]))


def second_norm(site: Site) -> nn.Module:
    """The norm in front of the feed-forward of a site's block."""
    kind = "no block" if site.block is None else type(site.block).__name__
    norms = [] if site.block is None else [each for each in site.block.children() if _is_norm(each)]
    require(
        len(norms) == NORMS_OF_A_BLOCK,
        f"{kind} at {site} has {len(norms)} norms, but one in front of its attention and one in front of its "
        "feed-forward are wanted to tell the stream between the two",
    )
    return norms[1]


def _is_norm(part: nn.Module) -> bool:
    return "norm" in type(part).__name__.lower()
