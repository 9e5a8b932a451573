"""Classes found by the names that people call them by: their own, or their file's.

`by_name("eca", "regardant.gate", Gate, noun="gate")` is `regardant.gate.eca_net.ECA`. Case, - and _ make no
difference.
"""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module

from regardant.core.errors import unknown


def by_name(name: str, package: str, base: type, *, noun: str, ending: str = "") -> type:
    """The subclass of `base` in the files of `package` that is called `name`.

    A class that stands alone in its file goes by the file's name as well. `ending` is what may be left out
    at the end of a class's name: "axial" for AxialAttention.
    """
    found = classes(package, base, ending=ending)
    plain = {_plain(known): known for known in found}
    if _plain(name) not in plain:
        raise unknown(noun, name, found)
    return found[plain[_plain(name)]]


def classes(package: str, base: type, *, ending: str = "") -> dict[str, type]:
    """All of them, each by every name that it has."""
    found: dict[str, type] = {}
    for file in pkgutil.iter_modules(import_module(package).__path__):
        module = import_module(f"{package}.{file.name}")
        own = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, base)]
        own = [each for each in own if each.__module__ == module.__name__]
        found |= {_spelled(each.__name__): each for each in own}
        found |= {_spelled(each.__name__.removesuffix(ending)): each for each in own if ending}
        if len(own) == 1:
            found[file.name] = own[0]
    return found


def _spelled(name: str) -> str:
    """CamelCase with its words apart: criss_cross_attention; a name in capitals stays one word."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name).lower()
