"""Every backbone's variants in timm's registry: `timm.create_model("regardant_maxvit_tiny", num_classes=10)`.

    from regardant.atlas.timm_entry import register_with_timm
    register_with_timm()

The names begin with `regardant_`, since timm has models of the same papers under names like ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regardant.atlas import catalog
from regardant.core.errors import require

PREFIX = "regardant_"

OF_TIMM = {"num_classes": "classes", "in_chans": "image_channels"}
"""timm's words for the arguments that every backbone has."""

FOR_DOWNLOADS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""What timm tells an entry about weights that it would download."""


def register_with_timm() -> list[str]:
    """Register all variants; the names that timm knows them by. Where timm does not import, that is said."""
    try:
        from timm.models import register_model
    except ImportError as error:
        raise ValueError(f"timm does not import here ({error}), so that it has no registry") from error
    known = [name for name, system in catalog.variants().items() if system.kind == "backbone"]
    for name in known:
        register_model(_entry(name))
    return [PREFIX + name for name in known]


def _entry(name: str) -> Callable[..., Any]:
    def entry(pretrained: bool = False, **given: Any) -> Any:
        require(not pretrained, f"pretrained is True, but {PREFIX}{name} has no weights to download")
        config = {OF_TIMM.get(key, key): value for key, value in given.items() if key not in FOR_DOWNLOADS}
        return catalog.create(name, **config)

    entry.__name__ = entry.__qualname__ = PREFIX + name
    entry.__doc__ = f"The variant {name} of regardant."
    return entry
