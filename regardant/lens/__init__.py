"""Measurements of what attention does: each returns data, and can draw it.

    regardant.lens.retrieval_heads(model, tokenizer).plot("heads.png")

Names load on first use, so that importing this package imports nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regardant.lens.head_map import HeadMap as HeadMap
    from regardant.lens.importance import importance_by_gradient as importance_by_gradient
    from regardant.lens.importance import importance_by_removal as importance_by_removal
    from regardant.lens.logit_lens import direct_attribution as direct_attribution
    from regardant.lens.logit_lens import logit_lens as logit_lens
    from regardant.lens.look import looks as looks
    from regardant.lens.patching import Patching as Patching
    from regardant.lens.patching import PromptPair as PromptPair
    from regardant.lens.probe import probe_layers as probe_layers
    from regardant.lens.residual_stream import read_parts as read_parts
    from regardant.lens.retrieval_head import retrieval_heads as retrieval_heads
    from regardant.lens.tape import Reading as Reading
    from regardant.lens.tape import Tape as Tape

_WHERE = {
    "HeadMap": "head_map",
    "Patching": "patching",
    "PromptPair": "patching",
    "Reading": "tape",
    "Tape": "tape",
    "direct_attribution": "logit_lens",
    "importance_by_gradient": "importance",
    "importance_by_removal": "importance",
    "logit_lens": "logit_lens",
    "looks": "look",
    "probe_layers": "probe",
    "read_parts": "residual_stream",
    "retrieval_heads": "retrieval_head",
}

__all__ = [
    "HeadMap",
    "Patching",
    "PromptPair",
    "Reading",
    "Tape",
    "direct_attribution",
    "importance_by_gradient",
    "importance_by_removal",
    "logit_lens",
    "looks",
    "probe_layers",
    "read_parts",
    "retrieval_heads",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'regardant.lens' has no attribute {name!r}")
    return getattr(import_module(f"regardant.lens.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
