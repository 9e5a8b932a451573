"""Gates on feature maps, and `insert`, which puts one into any network."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regardant.gate.insertion import Inserted as Inserted
    from regardant.gate.insertion import insert as insert

__all__ = ["Inserted", "insert"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("regardant.gate.insertion"), name)
