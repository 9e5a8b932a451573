"""Texts that a user gives, as windows of tokens to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.errors import require

Tokenizer = Callable[[str], Any]


class Texts:
    """Windows of `length` tokens from texts laid end to end: a task whose model gives its own losses.

    `texts` are strings, which take the model's `tokenizer`, or tensors of token ids [n].
    """

    metric_name: ClassVar[str] = "mean loss"
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self, texts: Sequence[str | Tensor], *, length: int, tokenizer: Tokenizer | None = None,
        vocabulary: int | None = None, held_out: int = 8,
    ):  # fmt: skip
        require(length >= 2, f"length is {length}, but a window holds at least 2 tokens")
        require(held_out >= 1, f"held_out is {held_out}, but at least 1 window is looked at")
        require(
            not isinstance(texts, str | Tensor) and len(texts) > 0,
            f"texts is {type(texts).__name__ if isinstance(texts, str | Tensor) else 'empty'}, but a list of "
            "strings or of token tensors is wanted",
        )
        self.length, self.held_out = length, held_out
        self.tokens = torch.cat([_tokens(text, tokenizer, place) for place, text in enumerate(texts)])
        require(
            len(self.tokens) >= length,
            f"texts hold {len(self.tokens)} tokens in all, but one window takes length={length}",
        )
        least, most = int(self.tokens.min()), int(self.tokens.max())
        require(
            least >= 0 and (vocabulary is None or most < vocabulary),
            f"texts hold the token {least if least < 0 else most}, but the model knows 0 to "
            f"{'' if vocabulary is None else vocabulary - 1}",
        )

    @property
    def name(self) -> str:
        """Which texts, in windows of what length: a training goes on only with the same."""
        digest = hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()
        return f"texts {digest[:12]}, windows of {self.length}"

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(self.tokens) - self.length + 1, (size,), generator=generator)
        return self._windows(starts)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows at even distances, one at a time."""
        last = len(self.tokens) - self.length
        for start in torch.linspace(0, last, min(self.held_out, last + 1)).long():
            yield self._windows(start[None])

    def _windows(self, starts: Int[Tensor, "b"]) -> tuple[Tensor, Tensor]:
        rows = self.tokens[starts[:, None] + torch.arange(self.length)]
        return rows, rows

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.mean(), torch.ones(())


def _tokens(text: str | Tensor, tokenizer: Tokenizer | None, place: int) -> Int[Tensor, "n"]:
    if isinstance(text, str):
        require(tokenizer is not None, f"text {place} is a string: give the model's tokenizer=")
        return torch.as_tensor(tokenizer(text)["input_ids"], dtype=torch.long).flatten()
    require(
        isinstance(text, Tensor)
        and text.ndim == 1
        and not text.is_floating_point()
        and not text.is_complex(),
        f"text {place} is {type(text).__name__}"
        + (f" {text.dtype} {list(text.shape)}" if isinstance(text, Tensor) else "")
        + ", but a string or a tensor of token ids [n] is wanted",
    )
    return text.long().cpu()
