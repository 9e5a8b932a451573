"""Text as words of bytes: a pre-tokeniser, masking of whole words, and the noise of careless typing."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.structure.byte2word import MASK, PAD

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, of other marks, and of white space; one space before a word is its own."""
    return re.findall(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+", text)


def word_symbols(words: Sequence[str], *, longest: int = 16, length: int | None = None) -> Int[Tensor, "w m"]:
    """The UTF-8 bytes of each word, cut at `longest`, and PAD behind; `length` cuts or fills up the words."""
    require(longest >= 1, f"longest is {longest}, but a word has at least 1 symbol")
    length = len(words) if length is None else length
    symbols = torch.full((length, longest), PAD)
    for at, word in enumerate(words[:length]):
        its = list(word.encode()[:longest])
        symbols[at, : len(its)] = torch.tensor(its, dtype=torch.long)
    return symbols


def mask_words(
    symbols: Int[Tensor, "b w m"], generator: torch.Generator, *, share: float = 0.15
) -> tuple[Int[Tensor, "b w m"], Bool[Tensor, "b w"]]:
    """Hide words as BERT hides tokens, and say which: of ten, eight become MASK, one another word of the
    batch, and one stays. Padding is never chosen."""
    require(0 < share <= 1, f"share is {share}, but it is a share of the words, in (0, 1]")
    real = (symbols != PAD).any(2)
    chosen = real & (torch.rand(real.shape, generator=generator) < share)
    fate = torch.rand(real.shape, generator=generator)
    words = symbols[real]
    other = (
        words[torch.randint(max(len(words), 1), real.shape, generator=generator)] if len(words) else symbols
    )
    mark = torch.full_like(symbols[0, 0], PAD)
    mark[0] = MASK
    masked = torch.where((chosen & (fate < 0.8))[..., None], mark, symbols)
    return torch.where((chosen & (fate >= 0.9))[..., None], other, masked), chosen


def noisy(text: str, generator: torch.Generator, *, share: float = 0.2) -> str:
    """In so many of the words of two letters or more, one letter is left out, put in, changed, or swapped
    with the next."""
    require(0 <= share <= 1, f"share is {share}, but it is a share of the words, in [0, 1]")

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    def spoil(found: re.Match) -> str:
        word = found.group()
        if float(torch.rand((), generator=generator)) >= share:
            return word
        kind, at, letter = draw(4), draw(len(word)), LETTERS[draw(len(LETTERS))]
        if kind == 0:
            return word[:at] + word[at + 1 :]
        if kind == 1:
            return word[:at] + letter + word[at:]
        if kind == 2:
            return word[:at] + letter + word[at + 1 :]
        at = min(at, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return re.sub(r"\w{2,}", spoil, text)
