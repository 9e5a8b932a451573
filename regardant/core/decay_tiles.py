"""How decayed linear attention is cut into tiles, and the powers of its decay in each.

A sequence is a row of blocks of c tokens; some neighbouring blocks of some heads make a tile, sized so
that its working memory stays in the caches and that a product over it keeps every core busy. A thread
meets the same heads in every product over a tile, so the cores do not trade memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_LOG = -1e4  # exp of it is 0 in every dtype, and 0 times it is still 0, unlike 0 times -inf


class Buffer(NamedTuple):
    """Working memory for one quantity over one tile: as its heads and blocks, and as one long batch."""

    tiled: Float[Tensor, "b g share m rows w"]
    flat: Float[Tensor, "b*g*share*m rows w"]

    def fade(self, by: Tensor | None) -> None:
        """Multiply by powers of λ, in place (None: by ones)."""
        if by is not None:
            self.tiled.mul_(by)


class Run(NamedTuple):
    """`count` tiles of `blocks` blocks of `size` tokens, one behind the other from token `first` on."""

    first: int
    count: int
    blocks: int
    size: int

    def cut(self, x: Float[Tensor, "b g share n w"]) -> tuple[Float[Tensor, "b g share m c w"], ...]:
        """The tiles of this run in x, as views."""
        rows = x.narrow(3, self.first, self.count * self.blocks * self.size)
        return rows.unflatten(3, (self.count, self.blocks, self.size)).unbind(3)

    def buffers(
        self, heads_of: Float[Tensor, "b g share d e"], *turns: tuple[tuple[int, int], ...]
    ) -> list[Buffer]:
        """Buffers for one tile of these heads, in their dtype; shapes of a block given together take turns
        in the same memory.

        The memory is asked for in one piece: many small ones the C library would hand back to the operating
        system after every call, and touching fresh pages takes longer than the arithmetic.
        """
        lead = (*heads_of.shape[:3], self.blocks)
        sizes = [math.prod(lead) * max(map(math.prod, shapes)) for shapes in turns]
        buffers = []
        for shapes, memory in zip(turns, heads_of.new_empty(sum(sizes)).split(sizes)):
            for shape in shapes:
                flat = memory[: math.prod(lead) * math.prod(shape)].view(-1, *shape)
                buffers.append(Buffer(flat.view(*lead, *shape), flat))
        return buffers


def tiling(
    b: int, g: int, share: int, n: int, *, block: int, device: torch.device
) -> tuple[list[Run], Iterator[tuple[slice, slice]]]:
    """The runs that cover n tokens from left to right, and the samples and key heads worked together."""
    tokens, most_blocks = (4096, 16) if device.type == "cpu" else (1 << 18, 64)
    room = max(1, tokens // block)
    whole, rest = divmod(n, block)
    blocks = max(1, min(most_blocks, whole, room // (b * g * share)))
    groups = min(g, max(1, room // (blocks * share)))
    samples = max(1, room // (blocks * share * groups)) if groups == g else 1
    count, left = divmod(whole, blocks)
    runs = [
        Run(0, count, blocks, block),
        Run(count * blocks * block, 1, left, block),
        Run(whole * block, 1, 1, rest),
    ]
    together = (
        (slice(i, min(i + samples, b)), slice(j, min(j + groups, g)))
        for i in range(0, b, samples)
        for j in range(0, g, groups)
    )
    return [run for run in runs if run.count * run.blocks * run.size], together


class Decay(NamedTuple):
    """Powers of λ over one tile, for blocks of c tokens with rows r = 0 … c-1. None stands for all ones."""

    within: Float[Tensor, "g share 1 c c"]
    """λ^(r-s) where r ≥ s, else 0."""
    since: Float[Tensor, "g share 1 c 1"] | None
    """λ^(r+1): what is left at row r of the state before the block."""
    until: Float[Tensor, "g share 1 c 1"] | None
    """λ^(c-1-r): what is left of row r in the state behind the block."""
    step: Float[Tensor, "g share 1 1"]
    """λ^c: what is left of a state after one block."""
    across: Float[Tensor, "g share m m"]
    """From the gains of blocks 0 … m-2 and, in the last place, the state before block 0, to the states
    before each of the m blocks."""

    @classmethod
    def over(
        cls, log_decay: Float[Tensor, "g share"] | None, run: Run, state: Float[Tensor, "b g share d e"]
    ):
        """The powers for the tiles of this run, in the state's dtype."""
        logs = state.new_zeros(state.shape[1:3]) if log_decay is None else log_decay.to(state.dtype)
        logs = logs.clamp(min=SMALLEST_LOG)[..., None]
        age = torch.arange(max(run.size + 1, run.blocks), device=state.device)
        powers = torch.exp(logs * age[: run.size + 1])
        within = triangle(powers[..., :-1])[:, :, None]
        across = triangle(torch.exp(logs * run.size * age[: run.blocks])).roll(-1, dims=-1)
        step = powers[..., -1:, None]
        if log_decay is None:
            return cls(within, None, None, step, across)
        since, until = powers[..., None, 1:, None], within[..., -1, :, None]
        return cls(within, since, until, step, across)


def triangle(powers: Float[Tensor, "*h c"]) -> Float[Tensor, "*h c c"]:
    """λ^(i-j) where i ≥ j, else 0, from λ^0, λ^1, … λ^(c-1)."""
    size = powers.shape[-1]
    return torch.nn.functional.pad(powers, (size - 1, 0)).unfold(-1, size, 1).flip(-1)


def carry(
    state: Float[Tensor, "b g share d e"],
    gained: Float[Tensor, "b g share m d e"],
    room: Float[Tensor, "b g share m d e"],
    decay: Decay,
    *,
    leftwards: bool = False,
) -> tuple[Float[Tensor, "b*g*share*m d e"], Float[Tensor, "b g share d e"]]:
    """The state that each block of a tile meets, and the state that the tile passes on.

    With the blocks in the order of travel, S_0 = `state` and S_(t+1) = λ^c S_t + gained_t. No block of
    the tile meets the gain of the last one, so its place holds the incoming state instead (`gained` is
    used up), and one product with m×m powers gives all the S_t, in `room`.
    """
    blocks, d, e = gained.shape[3:]
    last = 0 if leftwards else blocks - 1
    if blocks == 1:
        return state.reshape(-1, d, e), torch.addcmul(gained[:, :, :, 0], state, decay.step)
    gained_last = gained[:, :, :, last].clone()
    gained[:, :, :, last] = state
    across = decay.across.flip(-2, -1) if leftwards else decay.across
    across = across.expand(state.shape[0], -1, -1, -1, -1).reshape(-1, blocks, blocks)
    torch.bmm(across, gained.view(-1, blocks, d * e), out=room.view(-1, blocks, d * e))
    return room.view(-1, d, e), torch.addcmul(gained_last, room[:, :, :, last], decay.step)
