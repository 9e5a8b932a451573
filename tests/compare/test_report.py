"""What the report says and draws, read from its data; how it behaves is tested in a browser."""

import json
import re
from dataclasses import replace

import pytest

from regardant.compare.findings import BASELINE, Findings
from regardant.compare.report import cost_figures, curve_figures, map_figures, write
from regardant.compare.report.document import render
from regardant.compare.report.figure import linear, logarithmic, rounded, ticks_for
from regardant.compare.report.front_figures import against_cost
from regardant.compare.report.large_table import table
from regardant.compare.report.look import COLOURS, looks
from regardant.compare.report.overview import brief
from regardant.compare.report.standing_figures import standings
from regardant.compare.summary import summary
from tests.compare.sample_findings import LENGTHS, SYSTEMS, write_sample

LARGEST = 6e6


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return Findings.read(write_sample(tmp_path_factory.mktemp("sample")))


@pytest.fixture(scope="module")
def page(findings):
    return render(findings)


@pytest.fixture
def nothing(findings):
    """A comparison that has just begun."""
    return replace(findings, costs=(), runs=(), maps=(), failures=(), origins=())


def look(findings):
    return looks(findings.names, baseline=BASELINE)


def drawn(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def test_it_is_one_file_below_six_megabytes_that_loads_nothing(findings, tmp_path):
    path = write(findings, tmp_path / "report.html")
    assert path == tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < LARGEST
    # Without the library, which holds addresses in its texts.
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:)', own)
    assert set(re.findall(r'href="(https?://[^/"]+)', own)) <= {"https://arxiv.org", "https://github.com"}


def test_every_figure_is_one_that_plotly_takes(page):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    figures = drawn(page)
    assert len(figures) > 20
    for name, each in figures.items():
        assert graph_objects.Figure(data=each["data"], layout=each["layout"]), name


def test_every_plot_of_the_page_has_its_figure(page):
    assert set(re.findall(r'data-figure="([^"]+)"', page)) == set(drawn(page))


def test_names_and_reasons_cannot_break_the_page(findings):
    evil = "</script><b>&"
    failures = (replace(findings.failures[0], reason=evil, traceback=evil),)
    page = render(replace(findings, failures=failures, plan=replace(findings.plan, left_out=(evil,))))
    assert page.count("&lt;/script&gt;&lt;b&gt;&amp;") == 3
    assert evil not in page


def test_a_comparison_that_has_just_begun_has_a_page_that_says_so(nothing):
    page = render(nothing)
    for sentence in (
        "No time was measured in this comparison.", "No quality was measured in this comparison.",
        "No attention map was recorded in this comparison.", "Nothing has been measured yet.",
        "Nothing was measured over distance here.", "No two systems have both quality and cost on file.",
        "Everything that was planned was measured.",
    ):  # fmt: skip
        assert sentence in page, sentence
    assert drawn(page) == {}
    assert '<p class="where">3 tasks, 2 seeds · a budget of 4 minutes</p>' in page


def test_a_system_s_look_is_its_own_and_the_baseline_is_ink():
    names = [f"system-{k}" for k in range(12)]
    found = looks([*names, "softmax"], baseline="softmax")
    assert found["softmax"].slot == 0
    assert [found[name].slot for name in names[:COLOURS]] == list(range(1, COLOURS + 1))
    assert len({(each.slot, each.marker, each.dash) for each in found.values()}) == 13
    assert len({(found[name].slot, found[name].dash) for name in names}) == 12


def test_the_table_shades_the_best_and_all_that_tie_with_it(findings):
    made = table(findings)
    assert made.rows[0].system == findings.standings("recall")[0].system
    for place, column in enumerate(made.columns[:3]):
        found = findings.standings(column.title)
        shaded = {row.system for row in made.rows if row.cells[place].best}
        assert shaded == {found[0].system, *found[0].ties}
    assert dict(made.groups)["Quality"] == 3
    forward = next(place for place, column in enumerate(made.columns) if column.title == "forward")
    assert made.columns[forward].group == f"At {LENGTHS[-1]:,} tokens"
    best = min(made.rows, key=lambda row: row.cells[forward].sort)
    assert (best.system, best.cells[forward].best) == ("base-conv", True)


def test_what_there_is_no_figure_of_is_a_dash_or_its_reason(findings):
    rows = {row.system: row for row in table(findings).rows}
    token = next(k for k, column in enumerate(table(findings).columns) if column.title == "a token")
    cell = rows["flowformer"].cells[token]
    assert (cell.text, cell.sort) == ("left out", None)
    assert "does not decode step by step" in cell.note


def test_from_one_seed_nothing_is_shaded_and_nobody_is_ahead(findings):
    single = replace(findings, runs=tuple(run for run in findings.runs if run.seed == 0))
    made = table(single)
    assert not any(row.cells[0].best for row in made.rows)
    said = dict(brief(single))
    assert said["Multi-query associative recall"].endswith("but from one seed nobody is ahead.")
    assert "The front" not in said
    assert "One seed: there is no spread" in standings(single, look(single)).figures[0].caption


def test_a_system_with_one_seed_so_far_stands_where_the_others_spread_puts_it_and_that_is_said(findings):
    part = replace(
        findings, runs=tuple(run for run in findings.runs if run.seed == 0 or run.system != "base-conv")
    )
    rows = {row.system: row for row in table(part).rows}
    assert rows["softmax"].cells[0].best
    assert not rows["base-conv"].cells[0].best
    assert "1 seed, rank 8" in rows["base-conv"].cells[0].note
    caption = "One seed so far, with the pooled spread of the others: base-conv."
    said = dict(brief(part))["Multi-query associative recall"]
    assert said.startswith("softmax leads at") and said.endswith(caption)
    assert f"recall: {caption}" in table(part).notes
    assert standings(part, look(part)).figures[0].caption.endswith(f"1 to 2 seeds each. {caption}")
    assert f"recall: {caption}" in summary(part).notes


def test_a_machine_is_named_once_however_often_the_code_changed(findings):
    (origin,) = findings.origins
    later = replace(findings, origins=(origin, replace(origin, commit="fedcba987654")))
    assert summary(later).title == "9 systems; Some Processor, 2 threads, AVX2"
    moved = replace(findings, origins=(origin, replace(origin, machine="An abacus")))
    assert summary(moved).title == "9 systems; Some Processor, 2 threads, AVX2 and An abacus"


def test_from_one_length_no_crossover_is_told_and_the_reason_is(findings):
    single = replace(findings, costs=tuple(cost for cost in findings.costs if cost.length == 1024))
    crossing = next(k for k, column in enumerate(table(single).columns) if column.title.startswith("beats"))
    rows = {row.system: row.cells[crossing] for row in table(single).rows}
    assert (rows["moh"].text, rows["moh"].sort) == ("unknown", None)
    assert rows["moh"].note.endswith("where the lines cross takes two lengths to tell")
    assert rows["base-conv"].text == "1,024"
    columns, lines = summary(single).columns, {line[0]: line for line in summary(single).rows}
    assert lines["moh"][columns.index("faster from")] == "takes two lengths"
    assert lines["base-conv"][columns.index("faster from")] == "1,024"


def test_an_unfinished_comparison_says_so(findings):
    part = replace(findings, costs=tuple(cost for cost in findings.costs if cost.phase != "backward"))
    assert (
        table(part).notes[0].startswith(f"This comparison is not finished: {len(SYSTEMS) * len(LENGTHS)} of")
    )
    assert not any("not finished" in note for note in table(findings).notes)


def test_fitted_lines_go_through_what_was_fitted_and_dashed_beyond_it(findings):
    short = tuple(
        cost for cost in findings.costs
        if (cost.system, cost.phase) != ("aaren", "forward") or cost.length <= LENGTHS[2]
    )  # fmt: skip
    figure = cost_figures.time(replace(findings, costs=short), look(findings)).figures[0]
    lines = [each for each in figure.traces if each["name"] == "aaren" and each["mode"] == "lines"]
    assert [each["line"]["dash"] for each in lines] == ["solid", "dash"]
    assert lines[1]["x"] == list(LENGTHS[2:])
    growth = next(
        each for each in replace(findings, costs=short).growths()
        if (each.system, each.phase, each.quantity) == ("aaren", "forward", "seconds")
    )  # fmt: skip
    expected = [1e3 * growth.factor * length**growth.exponent for length in LENGTHS[2:]]
    assert lines[1]["y"] == pytest.approx(expected, rel=1e-3)
    label = next(each for each in figure.labels if each.system == "aaren")
    assert (label.x, label.text) == (LENGTHS[-1], f"aaren  n<sup>{growth.exponent:.2f}</sup>")


def test_two_points_are_not_continued(findings):
    short = tuple(
        cost for cost in findings.costs
        if (cost.system, cost.phase) != ("aaren", "forward") or cost.length <= LENGTHS[1]
    )  # fmt: skip
    figure = cost_figures.time(replace(findings, costs=short), look(findings)).figures[0]
    lines = [each for each in figure.traces if each["name"] == "aaren" and each["mode"] == "lines"]
    assert [each["x"] for each in lines] == [list(LENGTHS[:2])]
    assert next(each.x for each in figure.labels if each.system == "aaren") == LENGTHS[1]


def test_the_front_is_drawn_through_what_nothing_beats(findings):
    figure = against_cost(findings, look(findings)).figures[0]
    filled = {each["name"] for each in figure.traces[1:] if not each["marker"]["symbol"].endswith("-open")}
    steps = figure.traces[0]
    assert steps["x"] == sorted(steps["x"])
    assert steps["y"] == sorted(steps["y"])
    assert {"softmax", "base-conv"} <= filled
    assert "aaren" not in filled
    beaten = next(each for each in figure.traces[1:] if each["name"] == "aaren")
    assert "beaten by" in beaten["hovertemplate"]


def test_curves_show_the_mean_of_the_seeds_and_their_deviation(findings):
    figure = curve_figures.over_distance(findings, look(findings)).figures[0]
    trace = next(each for each in figure.traces if each["name"] == "softmax")
    curves = [run.curves[0].points for run in findings.runs_of("softmax", "recall")]
    means = [sum(curve[k][1] for curve in curves) / len(curves) for k in range(len(curves[0]))]
    assert trace["y"] == pytest.approx(means, rel=1e-3)
    assert len(trace["error_y"]["array"]) == len(means)
    beyond = curve_figures.over_length(findings, look(findings)).figures[0]
    assert beyond.layout["shapes"][0]["label"]["text"] == "trained here"


def test_maps_stand_side_by_side_in_the_order_of_the_plan(findings):
    found, left_out = map_figures.maps(findings)
    assert list(found) == ["recall"]
    assert list(found["recall"]) == ["L2 H1", "L2 H2", "L1 H1", "L1 H2"]
    assert [each.title for each in found["recall"]["L2 H1"]] == [name for name in SYSTEMS if name != "aaren"]
    assert left_out == ""


def test_more_maps_than_there_is_room_for_are_left_out_and_counted(findings, monkeypatch):
    monkeypatch.setattr(map_figures, "ROOM", 1)
    found, left_out = map_figures.maps(findings)
    assert list(found["recall"]) == ["L2 H1"]
    assert left_out == "3 more heads were left out to keep this file small."


def test_numbers_are_short_and_axes_hold_their_values():
    assert [rounded(value) for value in (0.123456, 123456.0, 3.0, float("nan"), None)] == [
        0.1235, 123500, 3, None, None,
    ]  # fmt: skip
    axis = logarithmic("n", [1.0, 100.0], plain=True)
    assert axis["range"][0] < 0 < 2 < axis["range"][1]
    assert axis["ticktext"][:4] == ["1", "2", "5", "10"]
    assert ticks_for([22, 28, 33, 33, 46]) == [22, 28, 33, 46]
    assert ticks_for(range(100, 2000)) == [128.0, 256.0, 512.0, 1024.0]
    low, high = linear("y", [0.5, 0.5])["range"]
    assert low < 0.5 < high
