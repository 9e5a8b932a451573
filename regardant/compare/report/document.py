"""The page of the report: everything in one file, the plotting library too."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from regardant.compare.findings import BASELINE, Findings
from regardant.compare.journal import write_whole
from regardant.compare.report import cost_figures, curve_figures, map_figures, method, systems
from regardant.compare.report.front_figures import against_cost
from regardant.compare.report.large_table import table
from regardant.compare.report.look import looks
from regardant.compare.report.overview import brief
from regardant.compare.report.standing_figures import standings

PAGE = files("regardant.compare.report") / "page"
LAST_TABS = (("attention", "Attention"), ("systems", "Systems"), ("method", "Method"))


class NoReport(ValueError):
    """What the page is made with is not installed."""


def write(findings: Findings, path: Path) -> Path:
    """Write the report of these findings to `path`, whole or not at all; the path is given back."""
    write_whole(path, render(findings))
    return path


def render(findings: Findings) -> str:
    """The page as text."""
    look = looks(findings.names, baseline=BASELINE)
    sections = [
        ("cost", "Cost", [cost_figures.time(findings, look), cost_figures.memory(findings, look)]),
        ("quality", "Quality", [standings(findings, look), curve_figures.learning(findings, look)]),
        ("length", "Length", [
            curve_figures.over_length(findings, look), curve_figures.over_distance(findings, look),
        ]),
    ]  # fmt: skip
    front = against_cost(findings, look)
    maps, maps_left_out = map_figures.maps(findings)
    panels = [front, *(panel for _, _, own in sections for panel in own)]
    figures = [figure for panel in panels for figure in panel.figures]
    figures += [figure for heads in maps.values() for own in heads.values() for figure in own]
    template = _environment().get_template("report.html")
    return template.render(
        findings=findings,
        plan=findings.plan,
        baseline=BASELINE,
        looks=look,
        heading=method.heading(findings),
        brief=brief(findings),
        table=table(findings),
        front=front,
        sections=sections,
        tabs=[("overview", "Overview"), *((name, title) for name, title, _ in sections), *LAST_TABS],
        maps=maps,
        map_groups=[(task, list(heads)) for task, heads in maps.items()],
        maps_left_out=maps_left_out,
        cards=systems.cards(findings.plan.systems),
        parts={system.name: list(system.parts) for system in findings.plan.systems},
        setting=method.setting(findings),
        origins=method.origins(findings),
        absences=method.absences(findings),
        style=_text("report.css"),
        script=_text("report.js"),
        plotly=_plotly(),
        data=_embed({figure.name: figure.drawn() for figure in figures if not figure.empty}),
        looks_data=_embed({name: vars(own) for name, own in look.items()}),
    )


def _environment() -> Any:
    """Templates whose values are escaped, and where a name that nobody gave is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _text(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise NoReport(
            "the report needs plotly, which is not installed: pip install 'regardant[report]'"
        ) from error
    return get_plotlyjs()


def _embed(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
