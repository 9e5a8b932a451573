"""A system with options of its own in one word: `sliding-window@window=16`, `my:Layer@rank=4,gate=true`.

This module does not import torch.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from regardant.core.errors import require

SAID = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Spec:
    """The name of a system (or `module:Class`), and keywords for its constructor."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Self:
        name, _, rest = text.partition("@")
        options = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            require(
                key.isidentifier() and bool(equals) and bool(value),
                f"{text!r} has the option {part!r}, but an option is key=value, as in moh@top_k=1",
            )
            options[key] = _value(value)
        return cls(name, options)


def _value(text: str) -> Any:
    if text.lower() in SAID:
        return SAID[text.lower()]
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text
