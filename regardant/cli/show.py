"""`regardant show`: one card with its systems, their configuration and support, and the evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from regardant.atlas import record, source
from regardant.atlas.card import Card, System
from regardant.atlas.catalog import card as find
from regardant.atlas.status import status
from regardant.cli.list import summarize
from regardant.cli.output import print_json, print_sections

Entries = list[tuple[str, str]]


def show(
    name: Annotated[str, typer.Argument(help="The slug of a card or the name of a system.")],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Show a card: facts, claim, configuration, support, status and evidence."""
    card = find(name)
    about = describe(card)
    if as_json:
        print_json(about)
        return
    sections = [(f"{card.slug}: {card.title}", _facts(card, about))]
    for system in about["systems"]:
        sections.append((f"{system['name']} ({system['kind']}, {system['target']})", _system(system)))
    if about["evidence"].get("claim"):
        sections.append(("evidence on the claim", _claim(about["evidence"]["claim"])))
    print_sections(sections)


def describe(card: Card) -> dict[str, Any]:
    """All that is known of a card, as data."""
    its = status(card)
    evidence = record.read(card.slug)
    return summarize(card, its) | {
        "code": card.code,
        "tags": list(card.tags),
        "summary": card.summary,
        "claim": card.claim,
        "lacks": list(its.reasons),
        "systems": [_describe_system(system, evidence, card.variants) for system in card.systems],
        "evidence": evidence,
    }


def _describe_system(
    system: System, evidence: Mapping[str, Any], variants: Mapping[str, str]
) -> dict[str, Any]:
    declared = source.supports(system.target)
    return {
        "name": system.name,
        "kind": system.kind,
        "target": system.target,
        "config": [asdict(option) for option in source.configuration(system.target)],
        "supports": None if declared is None else asdict(declared),
        "exempt": source.exempt(system.target),
        "contract": evidence.get("contract", {}).get(system.name),
        "variants": [name for name, made_by in variants.items() if made_by == system.name],
    }


def _facts(card: Card, about: Mapping[str, Any]) -> Entries:
    entries = [
        ("summary", card.summary),
        ("claim", card.claim),
        ("paper", f"{card.arxiv_url} ({card.year})" if card.arxiv else str(card.year)),
        ("code", card.code_url or "none"),
        ("kind", card.kind),
        ("tags", ", ".join(card.tags)),
        ("fidelity", card.fidelity),
        ("status", about["status"]),
    ]
    return entries + [("lacks", reason) for reason in about["lacks"]]


def _system(system: Mapping[str, Any]) -> Entries:
    entries = [("config", _spell(option)) for option in system["config"]]
    if system["variants"]:
        entries.append(("variants", ", ".join(system["variants"])))
    declared = system["supports"]
    if declared:
        able = [name for name, value in declared.items() if value is True]
        unable = [name for name, value in declared.items() if value is False]
        entries.append(("supports", ", ".join(able) or "none"))
        if unable:
            entries.append(("not", ", ".join(unable)))
        growth = (f"{name} n^{declared[name]:g}" for name in ("time", "memory", "state"))
        entries.append(("grows as", ", ".join(growth)))
    entries += [(f"exempt: {name}", why) for name, why in system["exempt"].items()]
    if verdict := system["contract"]:
        entries += [(f"contract: {name}", text) for name, text in _flat(verdict)]
    return entries


def _claim(found: Mapping[str, Any]) -> Entries:
    """What the experiment measured, ours beside the baseline, and the criteria; then the rest as it is."""
    entries = [("verdict", str(found.get("verdict", ""))), ("setting", str(found.get("setting", "")))]
    for figure in found.get("figures", ()):
        for side in ("ours", "baseline"):
            measured = "; ".join(f"{name} {_spread(values)}" for name, values in figure[side].items())
            entries.append((figure["quantity"] if side == "ours" else "", f"{side}: {measured or 'none'}"))
    for criterion in found.get("criteria", ()):
        # JSON has neither NaN nor infinity: such a figure is spelled, and read back here.
        measured, bound = float(criterion["found"]), float(criterion["bound"])
        rule = f"{criterion['rule']}: {measured:.4g} {criterion['sense']} {bound:.4g}"
        entries.append(("holds" if criterion["holds"] else "does not hold", rule))
    entries += [("note", note) for note in found.get("notes", ())]
    told = ("verdict", "setting", "figures", "criteria", "notes", "paper")
    return entries + _flat({name: value for name, value in found.items() if name not in told})


def _spread(values: Mapping[str, Any]) -> str:
    mean, deviation = float(values["mean"]), float(values["deviation"])
    return f"{mean:.4g} ± {deviation:.2g}" if len(values["values"]) > 1 else f"{mean:.4g}"


def _spell(option: Mapping[str, Any]) -> str:
    annotated = f"{option['name']}: {option['annotation']}" if option["annotation"] else option["name"]
    return (
        f"{annotated} = {option['default']}"
        if option["default"] is not None
        else f"{annotated}, must be given"
    )


def _flat(data: Mapping[str, Any], prefix: str = "") -> Entries:
    """Nested evidence as dotted names and text."""
    entries: Entries = []
    for name, value in data.items():
        if isinstance(value, dict):
            entries += _flat(value, f"{prefix}{name}.")
        else:
            entries.append((prefix + name, value if isinstance(value, str) else json.dumps(value)))
    return entries
