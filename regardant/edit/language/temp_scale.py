"""TempScale: one temperature for all attention of an encoder, so that long texts stay apart.

"Length-Induced Embedding Collapse in Transformer-based Models" (arXiv 2410.24200).

    A = softmax((q kᵀ · scaling + bias) / τ),        0 < τ < 1, in every layer and head

Self-attention is a low-pass filter over the tokens, the stronger the longer the text: embeddings of long
texts bunch together. A lower temperature lets more of what differs between tokens through. Nothing is
trained; queries and documents are encoded with the same τ, and τ = 1 changes nothing.

The official code replaces the attention modules of BERT, RoBERTa and T5 by copies that divide; here the
logits are divided on the way into whatever implementation the model uses (biases with them, masks not), so
the fused path stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from regardant.core.errors import require
from regardant.edit.edit import Edit


@dataclass
class TempScale(Edit):
    """All logits divided by `temperature`."""

    families: ClassVar[tuple[str, ...]] = ("bert", "roberta", "t5", "vit", "llama")

    temperature: float = 0.8

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"temperature is {self.temperature}, but logits are divided by it: > 0")

    def neutral(self) -> bool:
        return self.temperature == 1

    def factor(self, call, site, run):
        return 1 / self.temperature

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [dict(temperature=0.8), dict(temperature=1.5, layers=[0, -1])]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return dict(temperature=1.0)
