"""Layers that know nothing of this project: what can be found out about them by looking and trying."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from regardant.contract.drawing import DRAWN_LENGTHS, DRAWN_SIDES, LENGTHS, SIZES, Case, Use
from regardant.contract.report import Broken
from regardant.contract.subject import Inputs, Subject, blame, with_what_is_given
from regardant.contract.usual_names import heads_of, takes_triple, width_of
from regardant.core.errors import require

FLAT = ("sequence", "rule")


def is_rule(layer: nn.Module) -> bool:
    """Whether `forward` takes queries, keys and values [b, h, n, d]."""
    if not takes_triple(layer):
        return False
    heads = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), blame("forward"):
            y = layer(heads, heads, heads)
    except Broken:
        return False
    y = y[0] if isinstance(y, tuple | list) else y
    return isinstance(y, Tensor) and y.shape == heads.shape


def found_out(subject: Subject, layer: nn.Module, kind: str | None, causal: bool | None) -> Subject:
    """The subject with everything that its suite must know."""
    subject = replace(
        subject, width=subject.width or (None if "dim" in subject.takes else width_of(layer)),
        heads=subject.heads or (None if "heads" in subject.takes else heads_of(layer)),
        has_reference=callable(getattr(layer, "reference", None)),
        has_step=callable(getattr(layer, "start", None)) and callable(getattr(layer, "step", None)),
    )  # fmt: skip
    require(
        subject.width is not None or "dim" in subject.takes,
        f"the width of {subject.name} cannot be told from its constructor: give config={{'dim': …}}",
    )
    if subject.kind != "rule":
        subject = replace(subject, **_call_of(layer))
    kinds = ["rule"] if subject.kind == "rule" else [kind] if kind else ["sequence", "grid", "gate"]
    subject = _fitting(subject, kinds, causal)
    if subject.kind not in FLAT:
        return subject
    inner = getattr(layer, "rule", layer)
    known = causal if causal is not None else getattr(inner, "causal", getattr(inner, "is_causal", None))
    uses = [Use(bool(known) if isinstance(known, bool | int) else None)]
    if "causal" in subject.takes and causal is None:
        uses = [Use(True), Use(False)]
    return _lengths(replace(subject, uses=uses))


def _call_of(layer: nn.Module) -> dict[str, Any]:
    """How `forward` is called, and whether it takes padding."""
    accepted = inspect.signature(layer.forward).parameters
    times = 3 if takes_triple(layer) else 1
    turned = getattr(layer, "batch_first", True) is False  # torch's attention puts the length first

    def calling(**masks: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Inputs], Tensor]:
        def call(module: nn.Module, inputs: Inputs) -> Tensor:
            x = inputs.x.transpose(0, 1) if turned else inputs.x
            given = {name: mask(inputs.padding) for name, mask in masks.items() if inputs.padding is not None}
            y = module(*(x,) * times, **given)
            y = y[0] if isinstance(y, tuple | list) else y
            return y.transpose(0, 1) if turned else y

        return call

    if "padding" in accepted:
        return {"call": with_what_is_given, "pads": True}
    if "key_padding_mask" in accepted:  # torch's convention: True where a key is to be ignored
        return {"call": calling(key_padding_mask=torch.logical_not), "pads": True}
    if "attention_mask" in accepted:  # transformers' convention: True where a token is real
        return {"call": calling(attention_mask=lambda real: real), "pads": True}
    return {"call": calling()}


def _fitting(subject: Subject, kinds: Sequence[str], causal: bool | None) -> Subject:
    """The first kind, and the most exact type, that the layer runs as."""
    use = Use(bool(causal) if "causal" in subject.takes else None)
    errors = []
    for kind in kinds:
        flat = kind in FLAT
        as_this = replace(
            subject, kind=kind, sizes=SIZES["sequence" if flat else kind], uses=[use],
            drawn_sizes=DRAWN_LENGTHS if flat else DRAWN_SIDES,
        )  # fmt: skip
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            typed = replace(as_this, dtype=dtype, tolerance=tolerance)
            for size in ((64,), (17,), (2,)) if flat else ((12, 20), (7, 13)):
                error = runs(typed, size)
                if error is None:
                    return typed
                errors.append(f"as {kind}: {error}")
    raise ValueError(f"{subject.name} could not be run, {errors[0]}")


def _lengths(subject: Subject) -> Subject:
    """Keep to the lengths that run; the property `shape` reports the others."""
    tried = {length: runs(subject, (length,)) for length in sorted({*LENGTHS, *DRAWN_LENGTHS})}
    refused = {length: error for length, error in tried.items() if error is not None}
    return replace(
        subject, refused=refused, sizes=[size for size in subject.sizes if size[0] not in refused],
        drawn_sizes=tuple(length for length in DRAWN_LENGTHS if length not in refused),
    )  # fmt: skip


def runs(subject: Subject, size: tuple[int, ...]) -> str | None:
    """None, or why `forward` does not run at this size."""
    case = Case(size, heads=subject.plain_heads, causal=subject.uses[0].causal)
    try:
        with torch.no_grad():
            subject.forward(subject.build(case), subject.inputs(case))
    except Broken as broken:
        return str(broken)
    return None
