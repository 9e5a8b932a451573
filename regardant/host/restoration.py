"""What a model was before it was touched: hooks, instance dictionaries, configs; compared at the end.

Nothing that was there may be missing or changed, and nothing may have come but by the model's own library,
which adds hooks and caches of its own while it runs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from regardant.core.errors import require

OURS = "regardant"
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
REGISTERED = ("_parameters", "_buffers", "_modules")


class Restoration:
    """A model as it was found."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._found = model, _picture(model)
        self._home = {base.__module__.partition(".")[0] for base in type(model).__mro__}

    def check(self) -> None:
        """Raise unless the model is what it was."""
        changed = sorted({*self._changed()})
        require(
            not changed,
            f"the model is not what it was before the edit: {', '.join(changed[:5])} changed",
        )

    def _changed(self):
        now, named = _picture(self._model), dict(self._model.named_modules())
        for place in {*now, *self._found}:
            before, after = self._found.get(place, {}), now.get(place, {})
            if any(after.get(key) != value for key, value in before.items()):
                yield " ".join(place)
            name, kind = place
            for key in after.keys() - before.keys():
                thing = vars(named[name])[kind][key] if kind in HOOKS else vars(named[name]).get(key)
                origin = getattr(thing, "__module__", type(thing).__module__).partition(".")[0]
                if origin == OURS or (kind != "attributes" and origin not in self._home):
                    yield " ".join(place)


def _picture(model: nn.Module) -> dict[tuple[str, str], dict[Any, Any]]:
    """Who is who in every module: identities, so that a look costs next to nothing.

    A plain attribute may take another value in use (a count, a size); it may not go.
    """
    picture: dict[tuple[str, str], dict[Any, Any]] = {}
    for name, module in model.named_modules():
        held = vars(module)
        picture[name, "attributes"] = dict.fromkeys(held)
        for hooks in HOOKS:
            if held.get(hooks):
                picture[name, hooks] = {key: id(hook) for key, hook in held[hooks].items()}
        for registered in REGISTERED:
            picture[name, registered] = {key: id(value) for key, value in held[registered].items()}
        config = held.get("config")
        if hasattr(config, "_attn_implementation_internal"):
            picture[name, "config"] = {"implementation": (id(config), config._attn_implementation_internal)}
    return picture
