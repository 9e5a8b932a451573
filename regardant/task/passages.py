"""Passages of the standard library's sources for measuring pretrained models: one a file, each of equal
length."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.bytes import library_folder, source_files

CHARACTERS = 16
"""A passage of n tokens is cut from so many characters a token at most."""


def passages(
    tokenizer: Any, *, length: int, count: int, draw: int = 0, skip: int = 2000, folder: Path | None = None
) -> Int[Tensor, "count length"]:
    """`count` files' tokens from the character number `skip` on (behind licences and imports).

    Files come in an order that their names' hashes settle, and different draws have different files: those of
    draw 1 are the next `count`, and so on.
    """
    require(count >= 1 and draw >= 0, f"count is {count} and draw {draw}, but both are counts: count from 1")
    folder = library_folder() if folder is None else folder
    found: list[Tensor] = []
    files = sorted(source_files(folder), key=lambda path: hashlib.sha256(path.as_posix().encode()).digest())
    for path in files:
        if len(found) == (draw + 1) * count:
            break
        raw = (folder / path).read_bytes()
        if len(raw) < skip + 3 * length:  # a token of code has about three characters
            continue
        text = raw.decode("utf-8", errors="ignore")[skip : skip + CHARACTERS * length]
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
        if len(ids) >= length:
            found.append(ids[:length])
    require(
        len(found) == (draw + 1) * count,
        f"count is {count} and draw {draw}, but the folder {folder} holds {len(found)} files of {length} "
        "tokens",
    )
    return torch.stack(found[draw * count :])
