"""The same text with and without a part of it: what the part does to what comes behind.

pair = with_and_without(model, ids, Without(slice(0, 40)))
pair.loss_difference()          # how much likelier the rest is with the part before it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.host.roles import Roles


@dataclass(frozen=True)
class Without:
    """Leaves a part out of prompts: a slice of each text's own tokens (padding not counted), or a role's.

    What is left closes up. A part that differs by sample in length is not left out but becomes padding on the
    left.
    """

    part: slice | str
    roles: Roles | None = None

    def __post_init__(self) -> None:
        require(
            (isinstance(self.part, slice) and self.part.step in (None, 1)) or self.roles is not None,
            f"part is the role {self.part!r}, but no roles are given: Without({self.part!r}, roles=Roles(…))",
        )

    def left(self, real: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """Which of the real places are left."""
        batch, length = real.shape
        if isinstance(self.part, slice):
            own = real.long().cumsum(1) - 1
            ends = [self.part.indices(count)[:2] for count in real.sum(1).tolist()]
            first, last = torch.tensor(ends, device=real.device).T[..., None]
            out = (own >= first) & (own < last) & real
        else:
            out = self.roles.mask(self.part, length, batch=batch).expand(batch, length).to(real.device) & real
        require(
            bool(out.any()), f"{self.part} is nowhere in a text of {length} tokens: nothing would be left out"
        )
        require(
            bool((real & ~out).any(1).all()),
            f"{self.part} is a whole text of {length} tokens: nothing would be left",
        )
        return real & ~out

    def __call__(
        self, ids: Int[Tensor, "b n"], real: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Int[Tensor, "b k"], Bool[Tensor, "b k"]]:
        """The texts without it, and which of their tokens are real."""
        left = self.left(torch.ones_like(ids, dtype=torch.bool) if real is None else real.to(ids.device))
        counts = left.sum(1)
        # In order, with what is left out in front, as padding where others have more.
        order = left.to(torch.int8).argsort(dim=1, stable=True)[:, -int(counts.max()) :]
        kept = torch.arange(order.shape[1], device=ids.device) >= order.shape[1] - counts[:, None]
        return ids.gather(1, order), kept


@dataclass(frozen=True)
class Pair:
    """Logits of the tokens that both texts have, [b, n, vocabulary] each, and these tokens."""

    ids: Int[Tensor, "b n"]
    real: Bool[Tensor, "b n"]
    whole: Float[Tensor, "b n v"]
    without: Float[Tensor, "b n v"]

    def loss_difference(self) -> Float[Tensor, "b n-1"]:
        """How much worse a token is predicted without the part, in nats; 0 where none is before it."""
        losses = [
            -logits[:, :-1].log_softmax(-1).gather(-1, self.ids[:, 1:, None])[..., 0]
            for logits in (self.without, self.whole)
        ]
        return (losses[0] - losses[1]).masked_fill(~(self.real[:, 1:] & self.real[:, :-1]), 0)


def with_and_without(
    model: nn.Module, ids: Int[Tensor, "b n"], part: Without, *, real: Bool[Tensor, "b n"] | None = None
) -> Pair:
    """Both runs, the logits side by side. Edits at work on the model act in both."""
    require(ids.ndim == 2, f"ids is {list(ids.shape)}, but texts are [batch, length]")
    left, kept = part(ids, real)
    places, _ = part(torch.arange(ids.shape[1], device=ids.device).expand_as(ids), real)
    whole = read(model, ids, torch.ones_like(ids, dtype=torch.bool) if real is None else real).logits
    without = read(model, left, kept).logits
    return Pair(left, kept, whole.gather(1, places[..., None].expand(-1, -1, whole.shape[-1])), without)


def read(model: nn.Module, ids: Int[Tensor, "b n"], real: Bool[Tensor, "b n"], **rest):
    """A pass over texts with their padding, each text's places counted from its first real token."""
    places = (real.long().cumsum(1) - 1).clamp(min=0)
    places = places[:, -ids.shape[1] :]
    return model(input_ids=ids, attention_mask=real.long(), position_ids=places, **rest)
