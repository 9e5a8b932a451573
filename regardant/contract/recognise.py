"""From anybody's object to a subject: what it is, how it is made, how it is called.

Ours are recognised by their class, and those that bring their own examples by what they bring;
`regardant.contract.foreign` finds out about the others.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import nn

from regardant.atlas.catalog import keywords
from regardant.contract.brought import BROUGHT, FOLDERS, Brought, brought
from regardant.contract.carried import carried
from regardant.contract.drawing import (
    DRAWN_LENGTHS,
    DRAWN_SIDES,
    DRAWN_VOLUME_SIDES,
    SIZES,
    Case,
    Refused,
    Use,
)
from regardant.contract.foreign import found_out, is_rule
from regardant.contract.report import Broken
from regardant.contract.subject import Subject, copied, with_what_is_given
from regardant.contract.usual_names import NAMES, NOT_OWN, heads_of, width_of
from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.grid_mixer import GridMixer
from regardant.core.mixer import Mixer, MultiHead
from regardant.core.rule import Rule

KINDS = ("sequence", "grid", "gate", "rule", *FOLDERS, *BROUGHT)


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
) -> Subject | Brought:  # fmt: skip
    """The subject that an object is: a class, an instance, a factory, or `module:Attribute`."""
    known = ", ".join(dict.fromkeys(KINDS))
    require(kind is None or kind in KINDS, f"kind is {kind!r}, but the suites are for {known}")
    label = name or (obj if isinstance(obj, str) else getattr(obj, "__name__", type(obj).__name__))
    obj = find(obj) if isinstance(obj, str) else obj
    require(
        callable(obj), f"{label} is a {type(obj).__name__}, but a class, a layer or a factory can be checked"
    )
    config = dict(config or {})
    if (own := brought(obj, label, kind, config)) is not None:
        return own
    subject = (
        _instance(obj, label, config) if isinstance(obj, nn.Module) else _constructor(obj, label, config)
    )
    layer = _first(subject)
    ours = isinstance(layer, Mixer | GridMixer | Gate | Rule)
    subject = replace(subject, ours=ours, supports=getattr(layer, "supports", None) if ours else None)
    if isinstance(layer, Rule) or kind == "rule" or (kind is None and not ours and is_rule(layer)):
        subject = carried(subject, layer)
        layer = _first(subject)
    elif isinstance(layer, Gate | GridMixer):
        subject = replace(subject, kind="gate" if isinstance(layer, Gate) else "grid")
    elif isinstance(layer, Mixer):
        subject = replace(subject, kind="sequence")
    if ours:
        return _ours(subject, obj, layer, config)
    return found_out(subject, layer, kind, causal)


def _constructor(maker: Callable[..., Any], label: str, config: dict[str, Any]) -> Subject:
    accepted, anything = keywords(maker)
    for word, names in NAMES.items():  # our words are understood, too
        if word in config and word not in accepted and (theirs := [n for n in names if n in accepted]):
            config[theirs[0]] = config.pop(word)
    # A width that the constructor does not take is told to the suite, not to the constructor.
    told = {word: config.pop(word) for word in ("dim", "heads") if word in config and word not in accepted}
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

    fixed = told | {word: config[each] for word, names in NAMES.items() for each in names if each in config}
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


def _ours(subject: Subject, obj: Any, layer: nn.Module, config: Mapping[str, Any]) -> Subject:
    supports, takes, kind = layer.supports, subject.takes, subject.kind
    flat = kind in ("sequence", "rule")
    subject = replace(
        subject, has_reference=True, has_step=flat and supports.step, pads=flat and supports.padding,
        call=with_what_is_given, sizes=SIZES["sequence" if flat else kind],
        drawn_sizes=DRAWN_LENGTHS if flat else DRAWN_SIDES,
    )  # fmt: skip
    if not flat:
        subject = replace(subject, uses=[Use(None)])
        if getattr(layer, "rank", 2) == 3:
            subject = replace(subject, sizes=SIZES["volume"], drawn_sizes=DRAWN_VOLUME_SIDES)
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
        subject = replace(subject, width=width_of(layer))
    if "heads" not in takes:
        subject = replace(subject, heads=subject.heads or heads_of(layer))
    if subject.remakes and kind != "rule":
        subject = replace(
            subject, options=_options(subject, obj, config), positions=_positions(subject, layer)
        )
    return subject


def _options(subject: Subject, maker: Any, config: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Values to try for each of a system's own options; small numbers make windows and blocks bite."""
    options: dict[str, tuple[Any, ...]] = {}
    for name, parameter in keywords(maker)[0].items():
        own = name not in NOT_OWN or (name == "causal" and subject.kind in ("grid", "gate"))
        if not own or name in config:
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
