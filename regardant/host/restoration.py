"""What a model was before it was touched: hooks, instance dictionaries, configs; compared at the end."""

from __future__ import annotations

from typing import Any

from torch import nn

from regardant.core.errors import require

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class Restoration:
    """A model as it was found."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._found = model, _picture(model)

    def check(self) -> None:
        """Raise unless the model is what it was."""
        now = _picture(self._model)
        changed = sorted({name for name in {*now, *self._found} if now.get(name) != self._found.get(name)})
        require(
            not changed,
            f"the model is not what it was before the edit: {', '.join(changed[:5])} changed",
        )


def _picture(model: nn.Module) -> dict[str, Any]:
    """Who is who in every module: identities, so that a look costs next to nothing."""
    picture: dict[str, Any] = {}
    for name, module in model.named_modules():
        name = name or type(module).__name__
        held = vars(module)
        # Plain attributes may take other values in use (a count, a size); which there are may not change.
        picture[name] = (type(module), frozenset(held))
        for hooks in HOOKS:
            if held.get(hooks):
                picture[f"{name}.{hooks}"] = tuple(held[hooks])
        for registered in ("_parameters", "_buffers", "_modules"):
            picture[f"{name}.{registered}"] = tuple(
                (key, id(value)) for key, value in held[registered].items()
            )
        config = held.get("config")
        if hasattr(config, "_attn_implementation_internal"):
            picture[f"{name}.config"] = (id(config), config._attn_implementation_internal)
    return picture
