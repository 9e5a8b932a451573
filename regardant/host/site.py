"""A site: one attention layer of a model, whatever library the model comes from."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Site:
    """Where an attention is computed.

    `stack` tells the parts of a model apart: "main" where there is one, else "text", "vision", "audio",
    "encoder", "decoder". `layer` counts the blocks of that stack from 0. `cross` reads another sequence
    than the queries' own. Heads are query heads (`q_heads`) or the heads of keys and values that they
    share (`kv_heads`): query head i reads key head i // `group`.
    """

    name: str
    stack: str
    layer: int
    cross: bool
    q_heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    module: nn.Module = field(repr=False, compare=False)
    block: nn.Module | None = field(repr=False, compare=False, default=None)
    """The block that the residual stream leaves with this attention added; None where it is not known."""

    @property
    def group(self) -> int:
        return self.q_heads // self.kv_heads

    def __str__(self) -> str:
        across = " (cross)" if self.cross else ""
        return f"layer {self.layer} of {self.stack}{across}"
