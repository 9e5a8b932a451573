"""Byte language modelling on real text that is on every machine: Python's own standard library.

Which files are for validation is settled by a hash of the top-level module's name: a package lies on
one side as a whole, and stays there from one Python to the next. The packages that a distribution may
leave out (tests, IDLE, Tk) or that are tables rather than text (the encodings) are not read.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from regardant.core.errors import require
from regardant.task.score import certain, label_loss, summed_label_loss

LEFT_OUT = frozenset(
    [
        *("site-packages", "dist-packages", "ensurepip", "__pycache__", "encodings", "pydoc_data"),
        *("test", "tests", "lib2to3", "distutils", "idlelib", "tkinter", "turtledemo"),
    ]
)
SHARE = 0.1
"""Of the top-level modules, on average, this share is for validation."""


def is_for_validation(path: Path) -> bool:
    """Whether the file at this path, relative to the library's folder, is kept for validation."""
    module = path.parts[0].removesuffix(".py")
    return int.from_bytes(hashlib.sha256(module.encode()).digest()[:8]) < SHARE * 2**64


def source_files(folder: Path) -> list[Path]:
    """The files that are read, relative to the folder, in order."""
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(
        path for path in found if not LEFT_OUT & set(path.parts) and not path.parts[0].startswith("config-")
    )


def library_folder() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@cache
def read_library(folder: Path) -> tuple[UInt8[Tensor, " train"], UInt8[Tensor, " validation"]]:
    """All text of each side, as bytes; files are parted by a zero byte."""
    text: dict[bool, list[bytes]] = {False: [], True: []}
    for path in source_files(folder):
        text[is_for_validation(path)].append((folder / path).read_bytes())
    require(
        all(text.values()),
        f"the standard library's folder {folder} holds too few .py files to train and validate on",
    )
    train, validation = (bytearray(b"\0".join(text[side])) for side in (False, True))
    return torch.frombuffer(train, dtype=torch.uint8), torch.frombuffer(validation, dtype=torch.uint8)


@dataclass(frozen=True)
class Bytes:
    """Predict the next byte; the metric is the mean loss in nats a byte on unseen modules."""

    length: int = 128
    held_out: int = 256
    """Validation windows, evenly spaced over the validation text."""
    folder: Path | None = None
    """Another folder of .py files than the running Python's standard library."""

    vocabulary: ClassVar[int] = 256
    name: ClassVar[str] = "bytes of the standard library"
    metric_name: ClassVar[str] = "validation loss, nats a byte"
    higher_is_better: ClassVar[bool] = False

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        text = self._text()[0]
        starts = torch.randint(len(text) - self.length, (size,), generator=generator)
        return self._windows(text, starts)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        require(self.held_out >= 1, f"held_out is {self.held_out}, but at least 1 window is for validation")
        text = self._text()[1]
        starts = torch.linspace(0, len(text) - self.length - 1, self.held_out).long()
        for some in starts.split(32):
            yield self._windows(text, some)

    def _text(self) -> tuple[Tensor, Tensor]:
        text = read_library(library_folder() if self.folder is None else self.folder)
        shortest = min(map(len, text)) - 1
        require(
            1 <= self.length <= shortest,
            f"length is {self.length}, but a window of this text is between 1 and {shortest} bytes",
        )
        return text

    def _windows(self, text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        rows = text[starts[:, None] + torch.arange(self.length + 1)].long()
        return rows[:, :-1], rows[:, 1:]

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.vocabulary)

    loss = staticmethod(label_loss)
    metric = staticmethod(summed_label_loss)
