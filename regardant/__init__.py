"""regardant: the attention literature as a library.

`names()` and `card(name)` say what there is, `create(name, **config)` gives it, `check(thing)` puts
anybody's layer through the contract suites, `apply(model, *edits)` changes a running pretrained model,
`explain` shows how a pattern will be run. The patterns are at top level: `Causal() & Window(256)`.

Importing this package imports no torch; the first use of a system or a pattern does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regardant.atlas.card import Card
from regardant.atlas.catalog import card as _card
from regardant.atlas.catalog import create
from regardant.atlas.catalog import names as _names
from regardant.atlas.catalog import variants as _variants

if TYPE_CHECKING:
    from regardant.atlas.swaps import swap as swap
    from regardant.atlas.swaps import swappable as swappable
    from regardant.contract import check as check
    from regardant.core.grid_pattern import Axial as Axial
    from regardant.core.grid_pattern import Circle as Circle
    from regardant.core.grid_pattern import CrissCross as CrissCross
    from regardant.core.grid_pattern import Dilated2d as Dilated2d
    from regardant.core.grid_pattern import Halo as Halo
    from regardant.core.grid_pattern import Neighborhood as Neighborhood
    from regardant.core.grid_pattern import Stripe as Stripe
    from regardant.core.grid_pattern import Window2d as Window2d
    from regardant.core.pattern import Blocks as Blocks
    from regardant.core.pattern import Causal as Causal
    from regardant.core.pattern import Dilated as Dilated
    from regardant.core.pattern import Document as Document
    from regardant.core.pattern import Padding as Padding
    from regardant.core.pattern import Pattern as Pattern
    from regardant.core.pattern import PerHead as PerHead
    from regardant.core.pattern import Prefix as Prefix
    from regardant.core.pattern import Sink as Sink
    from regardant.core.pattern import Window as Window
    from regardant.core.plan import explain as explain
    from regardant.edit.apply import apply as apply
    from regardant.edit.edit import Edit as Edit
    from regardant.host.roles import Roles as Roles

__version__ = "0.1.0"

_WHERE = {
    "regardant.atlas.swaps": ("swap", "swappable"),
    "regardant.contract": ("check",),
    "regardant.core.plan": ("explain",),
    "regardant.edit.apply": ("apply",),
    "regardant.edit.edit": ("Edit",),
    "regardant.host.roles": ("Roles",),
    "regardant.core.pattern": (
        "Pattern",
        "Causal",
        "Window",
        "Dilated",
        "Sink",
        "Prefix",
        "Document",
        "Padding",
        "Blocks",
        "PerHead",
    ),
    "regardant.core.grid_pattern": (
        "Neighborhood",
        "Window2d",
        "Axial",
        "CrissCross",
        "Stripe",
        "Halo",
        "Circle",
        "Dilated2d",
    ),
}
_PACKAGES = ("lens",)
"""What is used as `regardant.lens.…` without an import of its own."""
_MODULES = {name: module for module, held in _WHERE.items() for name in held}

__all__ = [
    "Axial",
    "Blocks",
    "Card",
    "Causal",
    "Circle",
    "CrissCross",
    "Dilated",
    "Dilated2d",
    "Document",
    "Edit",
    "Halo",
    "Neighborhood",
    "Padding",
    "Pattern",
    "PerHead",
    "Prefix",
    "Roles",
    "Sink",
    "Stripe",
    "Window",
    "Window2d",
    "__version__",
    "apply",
    "card",
    "check",
    "create",
    "explain",
    "names",
    "swap",
    "swappable",
]


def names(kind: str | None = None) -> list[str]:
    """The names that `create` knows, variants too, sorted: all, or those of one folder (`names("grid")`)."""
    known = set(_names(kind))
    return sorted(known | {name for name, system in _variants().items() if system.name in known})


def card(name: str) -> Card:
    """The card of a paper, by its slug or by the name of a system that it gave."""
    return _card(name)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"regardant.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'regardant' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
