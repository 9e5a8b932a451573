"""Attention maps of trained layers: what each query takes of each key, for the same input side by side."""

from __future__ import annotations

from regardant.compare.findings import AttentionMap, Findings
from regardant.compare.report.figure import Figure

ROOM = 700_000
"""Numbers that maps may take of the page's size, in characters; what is more is left out and said."""


def maps(findings: Findings) -> tuple[dict[str, dict[str, list[Figure]]], str]:
    """By task, and by layer and head ("L2 H1"), the map of each system; what was left out, in a sentence."""
    groups: dict[tuple[str, int, int], list[AttentionMap]] = {}
    order = {name: place for place, name in enumerate(findings.names)}
    tasks = [task.name for task in findings.plan.tasks]
    for each in sorted(
        findings.maps, key=lambda each: (tasks.index(each.task), -each.layer, each.head, order[each.system])
    ):
        groups.setdefault((each.task, each.layer, each.head), []).append(each)
    found: dict[str, dict[str, list[Figure]]] = {}
    spent = left = 0
    for (task, layer, head), own in groups.items():
        size = sum(5 * len(each.matrix) ** 2 for each in own)
        if found and spent + size > ROOM:
            left += 1
            continue
        spent += size
        found.setdefault(task, {})[f"L{layer + 1} H{head + 1}"] = [
            _map(each, f"map-{task}-{layer}-{head}-{order[each.system]}") for each in own
        ]
    heads = "head was" if left == 1 else "heads were"
    return found, f"{left} more {heads} left out to keep this file small." if left else ""


def _map(each: AttentionMap, name: str) -> Figure:
    strengths = sorted(abs(value) for row in each.matrix for value in row)
    # The first queries have few keys to choose among: their large weights would leave the rest pale.
    top = strengths[int(0.99 * len(strengths))] if strengths else 0.0
    negative = any(value < 0 for row in each.matrix for value in row)
    hover = f"<b>{each.system}</b><br>query %{{y}}<br>key %{{x}}<br>takes %{{z:.3~f}}<extra></extra>"
    trace = {
        "type": "heatmap", "z": [[_short(value) for value in row] for row in each.matrix],
        "meta": {"role": "diverging" if negative else "weights"}, "showscale": False, "hovertemplate": hover,
        "zmin": -top if negative else 0, "zmax": top or 1,
    }  # fmt: skip
    spelled = [f"{place}: {_visible(token)}" for place, token in enumerate(each.tokens)]
    axis = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": "", "fixedrange": True,
            "type": "category"}  # fmt: skip
    layout = {
        "xaxis": axis, "yaxis": axis | {"autorange": "reversed"},
        "margin": {"l": 1, "r": 1, "t": 1, "b": 1},
    }  # fmt: skip
    trace |= {"x": spelled[: len(each.matrix[0])] if each.matrix else [], "y": spelled[: len(each.matrix)]}
    return Figure(name, each.system, f"strongest {top:.2g}", [trace], layout, height=0)


def _short(value: float) -> float:
    short = round(value, 3)
    return int(short) if short == int(short) else short


def _visible(token: str) -> str:
    return {"\n": "⏎", " ": "␣", "\t": "⇥"}.get(token, token)
