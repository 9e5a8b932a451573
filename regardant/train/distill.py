"""Distillation, layer by layer: what was swapped into a model learns to give what was there before.

    swapped = regardant.swap(model, "abc", layers=[8, 9])
    distill(swapped, texts, tokenizer=tokenizer, steps=300, checkpoint=Path("abc.safetensors"))

The model reads the texts with its own attention. At each swapped site the rule is given the same queries,
keys and values, and its parameters go down the gradient of

    loss = |rule(q, k, v) - heads|² / |heads|²

so that no error of one layer reaches another, and nothing but the rules is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from regardant.core.errors import require
from regardant.edit.swap import Swapped
from regardant.train.at_sites import SiteLoss, fit_at_sites, losses_at_sites
from regardant.train.fit import Fitted, Progress
from regardant.train.texts import Texts, Tokenizer


def distill(
    swapped: Swapped, texts: Sequence[str | Tensor], *, tokenizer: Tokenizer | None = None, length: int = 256,
    steps: int = 200, batch: int = 4, learning_rate: float = 1e-3, seed: int = 0,
    progress: Progress | None = None, checkpoint: Path | None = None, checkpoint_every: int = 50,
) -> Fitted:  # fmt: skip
    """Train what was swapped in, in place, on windows of `length` tokens of these texts.

    A run with a `checkpoint` that was killed goes on, with the same arguments, where it was.
    """
    given = _texts(swapped, texts, length, tokenizer)
    require(
        any(each.requires_grad for each in swapped.parameters()),
        f"{_named(swapped)} has no parameters: there is nothing to distil",
    )
    with swapped.aside():
        return fit_at_sites(
            swapped.model, swapped.layers, _losses(swapped), given, steps=steps, batch=batch,
            learning_rate=learning_rate, seed=seed, progress=progress, checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
        )  # fmt: skip


def mismatch(
    swapped: Swapped, texts: Sequence[str | Tensor], *, tokenizer: Tokenizer | None = None, length: int = 256
) -> dict[str, float]:
    """By the names of the sites: the loss above, over windows of these texts at even distances."""
    given = _texts(swapped, texts, length, tokenizer)
    with swapped.aside():
        return losses_at_sites(swapped.model, swapped.layers, _losses(swapped), given)


def _texts(
    swapped: Swapped, texts: Sequence[str | Tensor], length: int, tokenizer: Tokenizer | None
) -> Texts:
    require(bool(swapped.sites), "the model has its own attention back: nothing is swapped in")
    config = getattr(swapped.model, "config", None)
    return Texts(texts, length=length, tokenizer=tokenizer, vocabulary=getattr(config, "vocab_size", None))


def _losses(swapped: Swapped) -> dict[str, SiteLoss]:
    def loss(call, heads):
        return (swapped.heads(call) - heads).square().sum() / heads.square().sum()

    return dict.fromkeys((site.name for site in swapped.sites), loss)


def _named(swapped: Swapped) -> str:
    return type(next(iter(swapped.layers.values()))).__name__
