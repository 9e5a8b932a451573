"""The base of edits: an edit overrides the stages that it changes, and only these run other than before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.host.between import second_norm
from regardant.host.call import Call
from regardant.host.run import Run
from regardant.host.site import Site

STAGES = (
    "qkv", "factor", "logits", "weights", "read", "heads", "between", "residual", "keep", "inject", "scores",
    "attend",
)  # fmt: skip


@dataclass(kw_only=True)
class Edit:
    """A change to a model's attention, as a dataclass of its settings.

    `layers` (negative counts from the end) and `stack` choose where; None is everywhere. Of a model with
    cross-attention an edit changes the attention of a sequence to itself, unless `cross` is set.
    """

    passes: ClassVar[tuple[str, ...]] = ("prompt", "decoding")
    """In which passes `attend`, `logits` and `weights` act: one token behind a cache is "decoding", all else
    is "prompt"."""

    families: ClassVar[tuple[str, ...]] = ("llama", "gpt2", "gemma3")
    """Architectures (of `regardant.world.families`) that it is held to its contract on; the first is where
    most of it is tried."""
    exempt: ClassVar[Mapping[str, str]] = {}
    """Properties of the contract that it cannot have, and why."""

    layers: Collection[int] | None = None
    stack: str | None = None
    cross: bool = False

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """Settings to try it with, the first one typical: for the contract."""
        return [{}]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any] | None:
        """Settings that change nothing; None where there are none (then `exempt` says why)."""
        return None

    def neutral(self) -> bool:
        """Whether these settings change nothing: then nothing at all is done."""
        return False

    def touches(self, site: Site) -> bool:
        """Whether this edit acts at a site."""
        return (
            site.cross == self.cross
            and (self.stack is None or site.stack == self.stack)
            and (self._chosen is None or site.name in self._chosen)
        )

    def prepare(self, sites: Sequence[Site]) -> None:
        """Hear of the model's sites before any pass: refuse here what cannot be."""
        stacks = {site.stack for site in sites}
        require(
            self.stack is None or self.stack in stacks,
            f"stack is {self.stack!r}, but this model has {', '.join(sorted(stacks))}",
        )
        self._chosen = None
        if self.layers is not None:
            near = [
                s for s in sites if s.cross == self.cross and (self.stack is None or s.stack == self.stack)
            ]
            known = {site.layer for site in near}
            count = max(known, default=-1) + 1
            wanted = {layer + count if layer < 0 else layer for layer in self.layers}
            strange = sorted(wanted - known)
            require(
                not strange,
                f"layers holds {strange[0] if strange else ''}, but the attention layers here are "
                f"{_spans(sorted(known))}",
            )
            self._chosen = {site.name for site in near if site.layer in wanted}
        own = [site for site in sites if self.touches(site)]
        require(
            len(own) > 0,
            f"{type(self).__name__} touches no attention of this model (stack={self.stack!r}, "
            f"cross={self.cross})",
        )
        if type(self).between is not Edit.between:
            for site in own:
                second_norm(site)

    def stages(self, site: Site) -> frozenset[str]:
        """The stages that this class overrides, where it touches the site."""
        if self.neutral() or not self.touches(site):
            return frozenset()
        return frozenset(stage for stage in STAGES if getattr(type(self), stage) is not getattr(Edit, stage))

    def acts(self, run: Run) -> bool:
        """Whether this is one of its passes."""
        return ("decoding" if run.decoding else "prompt") in self.passes

    def replaces(self, call: Call, run: Run) -> bool:
        """Whether `attend` is wanted for this call; the others go on as without it."""
        return self.acts(run)

    def qkv(self, q: Tensor, k: Tensor, v: Tensor, site: Site, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [b, q_heads, m, d], keys and values [b, kv_heads, n, d], the cache's included."""
        return q, k, v

    def factor(self, call: Call, site: Site, run: Run) -> float | Float[Tensor, "#b #h #m 1"]:
        """A factor on all logits, biases included: the fused path is not left for it."""
        return 1.0

    def logits(self, logits: Float[Tensor, "b h m n"], site: Site, run: Run) -> Float[Tensor, "b h m n"]:
        """Scores before the mask: what is hidden stays hidden. `run.call` has all else of the call."""
        return logits

    def weights(self, weights: Float[Tensor, "b h m n"], site: Site, run: Run) -> Float[Tensor, "b h m n"]:
        return weights

    def read(
        self, call: Call, heads: Float[Tensor, "b h m e"], weights: Float[Tensor, "b h m n"] | None,
        site: Site, run: Run,
    ) -> None:  # fmt: skip
        """Hear of a call that was computed, for a later stage; `weights` where they were written out."""

    def heads(self, heads: Float[Tensor, "b h m e"], site: Site, run: Run) -> Float[Tensor, "b h m e"]:
        """What the query heads give, before they are projected together."""
        return heads

    def between(self, stream: Float[Tensor, "b m c"], site: Site, run: Run) -> Float[Tensor, "b m c"]:
        """The residual stream behind the site's attention, in front of the feed-forward."""
        return stream

    def residual(self, stream: Float[Tensor, "b m c"], site: Site, run: Run) -> Float[Tensor, "b m c"]:
        """The residual stream as it leaves the site's block."""
        return stream

    def keep(self, stream: Float[Tensor, "b m c"], site: Site, run: Run) -> Int[Tensor, "b k"] | None:
        """Which tokens go on behind the site's block; None: all. The others come back behind the last block
        as they were here."""
        return None

    def inject(self, stream: Float[Tensor, "b m c"], site: Site, run: Run) -> Float[Tensor, "b j c"] | None:
        """States that stand before all tokens in the blocks behind the site's, visible to all; None: none."""
        return None

    def scores(self, scores: Float[Tensor, "b vocabulary"], run: Run) -> Float[Tensor, "b vocabulary"]:
        """The logits of the next token."""
        return scores

    def attend(self, call: Call, site: Site, run: Run) -> Float[Tensor, "b h m e"]:
        """The whole computation."""
        raise TypeError(f"{type(self).__name__} does not replace attention")


def _spans(numbers: list[int]) -> str:
    return (
        f"{numbers[0]} to {numbers[-1]}"
        if numbers == list(range(numbers[0], numbers[-1] + 1))
        else str(numbers)
    )
