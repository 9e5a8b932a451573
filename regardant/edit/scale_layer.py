"""One layer's part in the residual stream, made larger or smaller.

    stream behind layer l  =  x_{l-1} + λ (x_l - x_{l-1})

With λ < 1 at the last layer this takes back some of what the last layer does to answers that were there
before it: the mitigation of Lv et al., "Interpreting Key Mechanisms of Factual Recall in Transformer-Based
Language Models", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.edit.edit import Edit
from regardant.host.run import Run
from regardant.host.site import Site


@dataclass(kw_only=True)
class ScaleLayer(Edit):
    """Scale what layer `layer` (-1 is the last) adds to the stream by `by`: 1 changes nothing, 0 skips it."""

    layer: int = -1
    by: float = 0.5

    def __post_init__(self) -> None:
        require(
            self.layers is None, f"layers is {self.layers}, but this edit is about one: layer={self.layer}"
        )
        require(self.by >= 0, f"by is {self.by}, but it is 0 or more")
        self.layers = [self.layer, self.layer - 1]

    def neutral(self) -> bool:
        return self.by == 1

    def prepare(self, sites: Sequence[Site]) -> None:
        require(self.layer != 0, "layer is 0, but there is no layer before it whose stream could be kept")
        super().prepare(sites)
        self._scaled = max(
            (site for site in sites if self.touches(site)), key=lambda site: site.layer
        ).name  # fmt: skip

    def residual(self, stream: Float[Tensor, "b m c"], site: Site, run: Run) -> Float[Tensor, "b m c"]:
        held = run.memory(self)
        if site.name != self._scaled:
            held["before"] = stream
            return stream
        before = held.pop("before")
        return before + self.by * (stream - before)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{"by": 0.5}, {"layer": 2, "by": 0.0}, {"layer": 1, "by": 1.5}]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return {"by": 1.0}
