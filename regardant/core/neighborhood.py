"""Softmax over neighbourhoods (Hassani et al.) at the speed of windows.

On one axis, a dilated neighbourhood splits the sequence into residue classes that never see each other,
and inside a class it is an ordinary one. That is a window of fixed width, save near the ends, where it
shifts and all queries see the same keys. So this rule lays the classes beside each other, runs windows,
and puts the results back. On more axes the plans cut boxes with halos, dilated ones too.

That is the fused form. The unfused one holds the weights, and NATTEN's kernels may do it where installed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core import plan
from regardant.core.errors import require, unknown
from regardant.core.grid_pattern import Neighborhood
from regardant.core.natten_backend import attend_natten, require_natten
from regardant.core.neighborhood_unfused import attend_unfused, neighbor_tiles
from regardant.core.pattern import And, Causal, Padding, Pattern, Window, both, split_padding
from regardant.core.position import Position
from regardant.core.rule import SoftmaxRule

FORMS = ("fused", "unfused", "natten")
"""Online softmax over tiles; logits, weights and values one after the other; NATTEN's kernels."""


def residues(length: int, dilation: int, device: torch.device) -> list[Int[Tensor, "classes members"]]:
    """The positions of each residue class, classes of one size together.

    Where the dilation does not divide the length, the first classes are longer by one.
    """
    longer, members = length % dilation, length // dilation
    sizes = ((range(longer), members + 1), (range(longer, dilation), members))
    return [
        torch.tensor(classes, device=device)[:, None] + dilation * torch.arange(size, device=device)
        for classes, size in sizes
        if len(classes) and size
    ]


class OffsetBias(nn.Module):
    """A learned number a head and an offset inside the neighbourhood, added to the logit.

    The table [heads, 2k - 1 per axis] is indexed by the key's place minus the query's, in steps of the
    dilation, plus k - 1; a shifted window makes offsets up to k - 1 to either side.
    """

    def __init__(self, heads: int, kernel: tuple[int, ...]):
        super().__init__()
        self.kernel = kernel
        self.table = nn.Parameter(torch.empty(heads, *(2 * length - 1 for length in kernel)))
        nn.init.trunc_normal_(self.table, std=0.02)

    def at(self, offsets: list[Tensor]) -> Float[Tensor, "h *offsets"]:
        """The bias of offsets, one tensor an axis; beyond the table lies nothing that is ever looked at."""
        index = [(along + k - 1).clamp(0, 2 * k - 2) for along, k in zip(offsets, self.kernel)]
        return self.table[(slice(None), *index)]


@dataclass(frozen=True)
class BoundBias:
    """The biases of a neighbourhood on the positions of a grid.

    `step` is how far apart neighbouring positions of this grid stand in the sequence that `position`
    speaks of: the dilation, where the grid is one residue class.
    """

    pattern: Neighborhood
    offsets: OffsetBias | None
    position: Position | None
    step: int = 1

    @property
    def stationary(self) -> bool:
        """Whether it depends on `i - j` alone: on one axis, where every step counts."""
        undilated = all(dilation == 1 for _, _, dilation, _ in self.pattern.axes)
        one = len(self.pattern.bound) == 1 and undilated
        return one and (self.position is None or getattr(self.position, "stationary", False))

    def block(self, i: Int[Tensor, "m"], j: Int[Tensor, "n"]) -> Float[Tensor, "h m n"]:
        parts = []
        if self.offsets is not None:
            queries, keys = self.pattern.coordinates(i), self.pattern.coordinates(j)
            apart = [
                key[None, :] // dilation - query[:, None] // dilation
                for query, key, (_, _, dilation, _) in zip(queries, keys, self.pattern.axes)
            ]
            parts.append(self.offsets.at(apart))
        if self.position is not None:
            parts.append(self.position.block(i * self.step, j * self.step))
        return sum(parts)


def neighborhood_in(pattern: Pattern | None) -> Neighborhood:
    """The bound neighbourhood in a conjunction: the first one."""
    parts = pattern.patterns if isinstance(pattern, And) else (pattern,)
    found = [part for part in parts if isinstance(part, Neighborhood)]
    require(len(found) > 0, f"pattern is {pattern}, but this rule wants a Neighborhood in it")
    return found[0]


def is_all(neighborhood: Neighborhood, rest: Pattern | None) -> bool:
    """Whether a pattern without its padding says no more than the neighbourhood does."""
    parts = rest.patterns if isinstance(rest, And) else (rest,)
    return all(part is neighborhood or (isinstance(part, Causal) and neighborhood.causal) for part in parts)


def attend_near(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"], near: Neighborhood,
    *, real: Bool[Tensor, "*b n"] | None, scale: float | None, bias: BoundBias | None,
) -> Float[Tensor, "b h n e"]:  # fmt: skip
    """Attention to an undilated neighbourhood on one axis, as windows."""
    ((length, kernel, _, is_causal),) = near.axes
    whole, half = slice(0, length), kernel // 2

    def attend(queries: slice, keys: slice, pattern: Pattern | None) -> Tensor:
        padding = None if real is None else Padding(real[..., keys])
        return plan.attend(
            q[:, :, queries], k[:, :, keys], v[:, :, keys], both(pattern, padding), scale=scale, bias=bias,
            offset=queries.start - keys.start,
        )  # fmt: skip

    window = as_window(near)
    if window is None or is_causal or half == 0:
        return attend(whole, whole, window or near)
    first = attend(slice(0, half), slice(0, kernel), None)
    middle = attend(slice(half, length - half), whole, window)
    last = attend(slice(length - half, length), slice(length - kernel, length), None)
    return torch.cat([first, middle, last], dim=2)


def as_window(near: Neighborhood) -> Pattern | None:
    """An undilated neighbourhood on one axis as what it is away from the ends; None where the ends meet,
    or where an even kernel makes it lopsided."""
    ((length, kernel, _, is_causal),) = near.axes
    if is_causal:
        return Causal() & Window(kernel)
    return None if kernel % 2 == 0 or 2 * kernel > length else Window(kernel // 2 + 1)


def explain_near(near: Neighborhood, **asked) -> plan.Plan:
    """How a neighbourhood on one axis will run: the plan of its residue classes, their pairs summed."""
    ((length, _, dilation, _),) = near.axes
    pairs = 0
    for positions in residues(length, dilation, torch.device("cpu"))[::-1]:
        count, members = positions.shape
        own = replace(near, dilation=1, size=(members,))
        way = plan.explain(as_window(own) or own, members, **asked)
        pairs += count * way.pairs
    classes = f"in each of {dilation} residue classes, " if dilation > 1 else ""
    return replace(way, reason=classes + way.reason, pairs=pairs, total=length**2)


def explain_form(near: Neighborhood, form: str) -> plan.Plan:
    """How a neighbourhood runs that is not left to the plans."""
    length = prod(near.bound)
    total, memory = length**2, "linear in the length times the pattern's width"
    if form == "unfused":
        pairs = neighbor_tiles(near, torch.device("cpu")).pairs
        reason = "logits, weights and values one after the other, as products over tiles"
        return plan.Plan(form, reason, pairs, total, memory)
    pairs = length * prod(kernel for _, kernel, _, _ in near.axes)
    return plan.Plan(form, "natten's own kernels", pairs, total, "linear in the length")


class NeighborhoodRule(SoftmaxRule):
    """Softmax under a pattern that holds a `Neighborhood`; what else the pattern says is obeyed as well."""

    def __init__(
        self, *, bias: Position | None = None, offsets: OffsetBias | None = None, form: str = "fused"
    ):
        super().__init__(bias=bias)
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        if form == "natten":
            require_natten()
        require(
            form == "fused" or bias is None,
            f"position is {type(bias).__name__}, a bias on logits, but form={form!r} has none by position",
        )
        require(
            form != "natten" or offsets is None,
            "relative_bias is True, but natten has no bias: choose form='fused' or 'unfused'",
        )
        self.offsets, self.form = offsets, form

    def bound_bias(self, pattern: Neighborhood, *, step: int = 1) -> BoundBias | None:
        if self.offsets is None and self.bias is None:
            return None
        return BoundBias(pattern, self.offsets, self.bias, step)

    def forward(self, q, k, v, *, pattern=None, scale=None):
        rest, real = split_padding(pattern)
        near = neighborhood_in(rest)
        if self.form == "unfused":
            return attend_unfused(q, k, v, near, pattern, scale=scale, offsets=self.offsets)
        if self.form == "natten":
            require(
                real is None and is_all(near, rest),
                f"pattern is {pattern}, but natten knows the neighbourhood alone: choose form='fused'",
            )
            return attend_natten(q, k, v, near, scale=scale)
        if len(near.bound) > 1 or not is_all(near, rest):
            return plan.attend(q, k, v, pattern, scale=scale, bias=self.bound_bias(near))
        ((length, _, dilation, _),) = near.axes
        if dilation == 1:
            return attend_near(q, k, v, near, real=real, scale=scale, bias=self.bound_bias(near))
        classes = residues(length, dilation, q.device)
        order = torch.cat([positions.flatten() for positions in classes])
        sizes = [positions.numel() for positions in classes]
        parts = [tensor.index_select(2, order).split(sizes, dim=2) for tensor in (q, k, v)]
        outs = [
            self._inside(positions, *part, near=near, real=real, scale=scale)
            for positions, *part in zip(classes, *parts)
        ]
        return torch.cat(outs, dim=2).index_select(2, order.argsort())

    def _inside(
        self, positions: Int[Tensor, "classes members"], q: Tensor, k: Tensor, v: Tensor,
        *, near: Neighborhood, real: Tensor | None, scale: float | None,
    ) -> Tensor:  # fmt: skip
        """Attention inside residue classes of one size: they stand beside the samples of the batch."""
        batch, (count, members) = q.shape[0], positions.shape
        q, k, v = (part.unflatten(2, (count, members)).transpose(1, 2).flatten(0, 1) for part in (q, k, v))
        if real is not None:
            real = real.expand(batch, -1)[:, positions.to(real.device)].flatten(0, 1)
        own = replace(near, dilation=1, size=(members,))
        bias = self.bound_bias(own, step=near.axes[0][2])
        out = attend_near(q, k, v, own, real=real, scale=scale, bias=bias)
        return out.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        bias = self.bound_bias(neighborhood_in(split_padding(pattern)[0]))
        return plan.attend_dense(q, k, v, pattern, scale=scale, bias=bias)

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        """The state holds the last (kernel - 1) · dilation + 1 rows; the query reads its residue class."""
        near = neighborhood_in(pattern)
        state = self._remember(state, k[:, :, None], v[:, :, None], pattern)
        keys, values = state.keys.rows, state.values.rows
        ((_, _, dilation, _),) = near.axes
        first = (keys.shape[-2] - 1) % dilation
        keys, values = keys[..., first::dilation, :], values[..., first::dilation, :]
        count, now = keys.shape[-2], state.length - 1
        at = now - dilation * torch.arange(count - 1, -1, -1, device=q.device)
        query, mask = at[-1:], None
        if not is_all(near, pattern):
            mask = pattern.block(query, at, batch=q.shape[0], heads=q.shape[1])
        bias = self.bound_bias(near)
        bias = None if bias is None else bias.block(query, at)
        return plan.attend_rows(q[:, :, None], keys, values, mask, scale=scale, bias=bias)[:, :, 0], state
