"""Docstrings of the standard library: short texts, each with a name and the module that it is from."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from regardant.core.errors import require
from regardant.task.bytes import library_folder, source_files


@dataclass(frozen=True)
class Docstring:
    """The first paragraph of a docstring in one line, what it describes, and the top-level module."""

    module: str
    name: str
    text: str

    @property
    def words(self) -> str:
        """The name in words: `getDefaultEncoding` and `get_default_encoding` are "get default encoding"."""
        apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", self.name)
        return " ".join(apart.replace("_", " ").lower().split())


@cache
def read_docstrings(folder: Path | None = None) -> tuple[Docstring, ...]:
    """Those of all functions and classes but dunders, in the order of the files; a text that comes up again
    is left out. `folder` is another one than the running Python's standard library."""
    folder = library_folder() if folder is None else folder
    found: dict[str, Docstring] = {}
    for path in source_files(folder):
        try:
            tree = ast.parse((folder / path).read_bytes())
        except SyntaxError:  # some files are there to be wrong
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if text and text not in found and not node.name.startswith("__"):
                found[text] = Docstring(path.parts[0].removesuffix(".py"), node.name, text)
    require(bool(found), f"the folder {folder} holds no .py file with a docstring")
    return tuple(found.values())
