"""From anybody's object to a subject: what it is, how it is made, how it is called.

Ours are recognised by their class. Of others the signatures are read: which of the usual names for
width, heads and causality the constructor takes, whether `forward` takes padding or a context; what
no signature tells is found by trying.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from regardant.atlas.catalog import keywords
from regardant.contract.carried import carried
from regardant.contract.drawing import DRAWN_LENGTHS, DRAWN_SIDES, LENGTHS, Case, Refused, Use
from regardant.contract.report import Broken
from regardant.contract.subject import Inputs, Subject, copied
from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.grid_mixer import GridMixer
from regardant.core.mixer import Mixer, MultiHead
from regardant.core.rule import Rule

KINDS = ("sequence", "grid", "gate", "rule")
SIZES = {
    "sequence": [(length,) for length in LENGTHS],
    "grid": [(1, 1), (7, 13), (33, 64)],
    "gate": [(1, 1), (7, 13), (33, 64)],
}
NAMES = {
    "dim": ("dim", "channels", "embed_dim", "d_model", "hidden_size", "hidden_dim", "model_dim", "dim_model",
            "embedding_dim", "n_embd", "in_channels", "in_features", "width", "features", "query_dim"),
    "heads": ("heads", "num_heads", "n_heads", "nhead", "n_head", "nheads", "num_attention_heads"),
    "causal": ("causal", "is_causal"),
    "kv_heads": ("kv_heads", "num_kv_heads", "n_kv_heads", "num_key_value_heads"),
    "context_dim": ("context_dim",),
    "pattern": ("pattern",),
    "position": ("position",),
    "max_length": ("max_length",),
}  # fmt: skip
"""The usual names of what a constructor may take, ours first."""
NOT_OWN = {"head_dim", "scale", "rule", "grid_pattern", "bias", "seed"} | {
    name for names in NAMES.values() for name in names
}
TRIPLES = (("q", "k", "v"), ("query", "key", "value"), ("queries", "keys", "values"))


def find(target: str) -> Any:
    """The object that `module:Attribute` names."""
    module_name, _, attribute = target.partition(":")
    require(bool(module_name and attribute), f"the target is {target!r}, but it is written module:Attribute")
    try:
        found = import_module(module_name)
    except ImportError as error:
        raise ValueError(f"the target is {target!r}, but importing {module_name} failed: {error}") from error
    for part in attribute.split("."):
        require(hasattr(found, part), f"the target is {target!r}, but {module_name} has no {attribute}")
        found = getattr(found, part)
    return found


def recognise(
    obj: Any, *, name: str | None = None, kind: str | None = None, config: Mapping[str, Any] | None = None,
    causal: bool | None = None,
) -> Subject:  # fmt: skip
    """The subject that an object is: a class, an instance, a factory, or `module:Attribute`."""
    require(kind is None or kind in KINDS, f"kind is {kind!r}, but the suites are for {', '.join(KINDS)}")
    label = name or (obj if isinstance(obj, str) else getattr(obj, "__name__", type(obj).__name__))
    obj = find(obj) if isinstance(obj, str) else obj
    require(
        callable(obj), f"{label} is a {type(obj).__name__}, but a class, a layer or a factory can be checked"
    )
    config = dict(config or {})
    subject = (
        _instance(obj, label, config) if isinstance(obj, nn.Module) else _constructor(obj, label, config)
    )
    layer = _first(subject)
    ours = isinstance(layer, Mixer | GridMixer | Gate | Rule)
    subject = replace(subject, ours=ours, supports=getattr(layer, "supports", None) if ours else None)
    if isinstance(layer, Rule) or kind == "rule" or (kind is None and not ours and _triple(layer)):
        subject = carried(subject, layer, causal=causal)
        layer = _first(subject)
    elif isinstance(layer, Gate | GridMixer):
        subject = replace(subject, kind="gate" if isinstance(layer, Gate) else "grid")
    elif isinstance(layer, Mixer):
        subject = replace(subject, kind="sequence")
    if ours:
        return _ours(subject, obj, layer, config)
    return _theirs(subject, layer, kind, causal)


def _constructor(maker: Callable[..., Any], label: str, config: dict[str, Any]) -> Subject:
    accepted, anything = keywords(maker)
    for word, names in NAMES.items():  # our words are understood, too
        if word in config and word not in accepted and (theirs := [n for n in names if n in accepted]):
            config[theirs[0]] = config.pop(word)
    require(
        anything or set(config) <= set(accepted),
        f"config has {', '.join(sorted(set(config) - set(accepted)))}, which {label} does not take: "
        f"it takes {', '.join(accepted) or 'nothing'}",
    )
    words = {
        word: given
        for word, names in NAMES.items()
        if (given := next((name for name in names if name in accepted), None)) and given not in config
    }
    missing = [
        parameter
        for parameter, given in accepted.items()
        if given.default is given.empty and parameter not in config and parameter not in words.values()
    ]
    require(
        not missing, f"{label} needs {', '.join(missing)}, which the suite cannot guess: give it in config"
    )

    def make(configuration: Mapping[str, Any]) -> nn.Module:
        layer = maker(**config, **{words.get(word, word): value for word, value in configuration.items()})
        if not isinstance(layer, nn.Module):
            raise ValueError(f"{label} gave a {type(layer).__name__}, but a suite checks an nn.Module")
        return layer

    fixed = {word: config[each] for word, names in NAMES.items() for each in names if each in config}
    return Subject(
        label, "sequence", make, frozenset(words), width=fixed.get("dim"), heads=fixed.get("heads")
    )


def _instance(layer: nn.Module, label: str, config: dict[str, Any]) -> Subject:
    require(
        set(config) <= {"dim", "heads"},
        f"config has {', '.join(config)}, but {label} is made already: only dim and heads can be told",
    )
    width, heads = config.get("dim"), config.get("heads")
    return Subject(label, "sequence", copied(layer), width=width, heads=heads, remakes=False)


def _first(subject: Subject) -> nn.Module:
    """One layer, to look at."""
    heads = subject.plain_heads
    causal = False if "causal" in subject.takes else None
    errors = []
    for order in (causal, True) if causal is False else (None,):
        try:
            return subject.build(Case((2,), heads=heads, causal=order, head_dim=8))
        except Broken as broken:
            errors.append(broken)
    raise ValueError(f"{subject.name} could not be made: {errors[0]}")


def _width(layer: nn.Module) -> int | None:
    for name in (*NAMES["dim"], *(f"_{name}" for name in NAMES["dim"])):
        value = getattr(layer, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    for module in layer.modules():
        for name in ("embed_dim", "in_features", "in_channels", "num_features"):
            if isinstance(getattr(module, name, None), int):
                return getattr(module, name)
        if isinstance(module, nn.LayerNorm):
            return module.normalized_shape[-1]
    return None


def _heads(layer: nn.Module) -> int | None:
    for module in layer.modules():
        for name in NAMES["heads"]:
            if isinstance(value := getattr(module, name, None), int):
                return value
    return None


def _triple(layer: nn.Module) -> bool:
    """Whether `forward` takes queries, keys and values."""
    parameters = list(inspect.signature(layer.forward).parameters)
    return tuple(parameters[:3]) in TRIPLES


def _ours(subject: Subject, obj: Any, layer: nn.Module, config: Mapping[str, Any]) -> Subject:
    supports, takes, kind = layer.supports, subject.takes, subject.kind
    flat = kind in ("sequence", "rule")
    subject = replace(
        subject, has_reference=True, has_step=flat and supports.step, pads=flat and supports.padding,
        call=_call, sizes=SIZES["sequence" if flat else kind],
        drawn_sizes=DRAWN_LENGTHS if flat else DRAWN_SIDES,
    )  # fmt: skip
    if not flat:
        subject = replace(subject, uses=[Use(None)])
    elif "causal" in takes:
        across = "context_dim" in takes
        uses = [Use(True)] * supports.causal + [Use(False)] * supports.noncausal
        uses += [Use(True, True)] * (supports.causal_cross and across)
        uses += [Use(False, True)] * (supports.cross and across)
        subject = replace(subject, uses=uses)
    else:
        context_dim = getattr(layer, "context_dim", None)
        causal = bool(getattr(layer, "causal", False))
        subject = replace(subject, uses=[Use(causal, context_dim is not None)], context_width=context_dim)
    if "dim" not in takes and subject.width is None:
        subject = replace(subject, width=_width(layer))
    if "heads" not in takes:
        subject = replace(subject, heads=subject.heads or _heads(layer))
    if subject.remakes and kind != "rule":
        subject = replace(
            subject, options=_options(subject, obj, config), positions=_positions(subject, layer)
        )
    return subject


def _options(subject: Subject, maker: Any, config: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Values to try for each of a system's own options; small numbers make windows and blocks bite."""
    options: dict[str, tuple[Any, ...]] = {}
    for name, parameter in keywords(maker)[0].items():
        if name in NOT_OWN or name in config:
            continue
        default, annotation = parameter.default, str(parameter.annotation)
        if isinstance(default, bool):
            values: tuple[Any, ...] = (not default,)
        elif isinstance(default, int):
            values = tuple(value for value in (1, 2, 5) if value != default)
        elif annotation.startswith("Literal["):
            choices = ast.literal_eval(f"({annotation[len('Literal[') : annotation.index(']')]},)")
            values = tuple(choice for choice in choices if choice != default)
        else:
            continue
        kept = tuple(value for value in values if _accepts(subject, options=((name, value),)))
        if kept:
            options[name] = (None, *kept)
    return options


def _positions(subject: Subject, layer: nn.Module) -> tuple[str, ...]:
    if "position" not in subject.takes or not isinstance(layer, MultiHead):
        return ("none",)
    others = ("rotary", "alibi", "relative", "learned")
    return ("none", *(name for name in others if _accepts(subject, position=name)))


def _accepts(subject: Subject, **fields: Any) -> bool:
    """Whether a layer can be made with this; a refusal is a `ValueError`."""
    use = subject.uses[0]
    case = Case((2,), heads=subject.plain_heads, causal=use.causal, across=use.across, **fields)
    try:
        subject.build(case)
    except Refused:
        return False
    except Broken as broken:
        if isinstance(broken.__cause__, ValueError):
            return False
        raise
    return True


def _call(layer: nn.Module, inputs: Inputs) -> Tensor:
    given = {name: value for name in ("context", "padding") if (value := getattr(inputs, name)) is not None}
    return layer(inputs.x, **given)


def _theirs(subject: Subject, layer: nn.Module, kind: str | None, causal: bool | None) -> Subject:
    """What can be found out about a layer that knows nothing of this project."""
    width = subject.width or (None if "dim" in subject.takes else _width(layer))
    require(
        width is not None or "dim" in subject.takes,
        f"the width of {subject.name} cannot be told from its constructor: give config={{'dim': …}}",
    )
    subject = replace(
        subject, width=width, heads=subject.heads or (None if "heads" in subject.takes else _heads(layer)),
        has_reference=callable(getattr(layer, "reference", None)),
        has_step=callable(getattr(layer, "start", None)) and callable(getattr(layer, "step", None)),
    )  # fmt: skip
    if subject.kind != "rule":
        subject = replace(subject, **_their_forward(layer))
    kinds = (
        [subject.kind if subject.kind == "rule" else kind] if kind or subject.kind == "rule" else KINDS[:3]
    )
    subject = _fitting(subject, kinds, causal)
    if subject.kind not in ("sequence", "rule"):
        return subject
    known = causal if causal is not None else getattr(layer, "causal", getattr(layer, "is_causal", None))
    uses = [Use(bool(known) if isinstance(known, bool | int) else None)]
    if "causal" in subject.takes:
        uses = [Use(True), Use(False)] if causal is None else [Use(causal)]
    subject = replace(subject, uses=uses)
    fitting = [size for size in subject.sizes if _runs(subject, size, uses[0]) is None]
    return replace(subject, drawn_sizes=DRAWN_LENGTHS if len(fitting) == len(subject.sizes) else
                   tuple(size[0] for size in fitting))  # fmt: skip


def _their_forward(layer: nn.Module) -> dict[str, Any]:
    accepted = inspect.signature(layer.forward).parameters
    if "padding" in accepted:
        return {"call": _call, "pads": True}
    if "key_padding_mask" in accepted:  # torch's convention: True where a key is to be ignored

        def call(module: nn.Module, inputs: Inputs) -> Tensor:
            mask = None if inputs.padding is None else ~inputs.padding
            return module(inputs.x, key_padding_mask=mask)

        return {"call": call, "pads": True}
    if "attention_mask" in accepted:  # transformers' convention: True where a token is real
        return {"call": lambda module, inputs: module(inputs.x, attention_mask=inputs.padding), "pads": True}
    return {"call": lambda module, inputs: module(inputs.x)}


def _fitting(subject: Subject, kinds: Any, causal: bool | None) -> Subject:
    """The first kind, and the more exact type, that the layer runs as."""
    use = Use(bool(causal) if "causal" in subject.takes else None)
    errors = []
    for kind in kinds:
        flat = kind in ("sequence", "rule")
        as_this = replace(
            subject, kind=kind, sizes=SIZES["sequence" if flat else kind], uses=[use],
            drawn_sizes=DRAWN_LENGTHS if flat else DRAWN_SIDES,
        )  # fmt: skip
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            typed = replace(as_this, dtype=dtype, tolerance=tolerance)
            for size in ((64,), (17,), (2,)) if flat else ((16, 16), (7, 13)):
                error = _runs(typed, size, use)
                if error is None:
                    return typed
                errors.append(f"as {kind}: {error}")
    raise ValueError(f"{subject.name} could not be run, {errors[0]}")


def _runs(subject: Subject, size: tuple[int, ...], use: Use) -> str | None:
    """None, or why `forward` does not run at this size."""
    case = Case(size, heads=subject.plain_heads, causal=use.causal)
    try:
        with torch.no_grad():
            subject.forward(subject.build(case), deepcopy(subject.inputs(case)))
    except Broken as broken:
        return str(broken)
    return None
