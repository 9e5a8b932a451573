from math import isclose

import pytest

from regardant.compare.crossing import Crossover, find_crossover
from regardant.compare.findings import Findings
from regardant.compare.standing import about_single_seeds, rank
from tests.compare.sample_findings import LENGTHS, SEEDS, SYSTEMS, write_sample


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return Findings.read(write_sample(tmp_path_factory.mktemp("sample")))


def test_everything_in_the_folder_is_read(findings):
    assert findings.names == list(SYSTEMS)
    assert len(findings.runs) == len(SYSTEMS) * 3 * len(SEEDS) - 1
    assert [cost.length for cost in findings.costs_of("softmax", "backward")] == list(LENGTHS)
    assert {failure.outcome for failure in findings.failures} == {"skipped", "failed", "no memory"}
    assert next(each for each in findings.failures if each.outcome == "failed").traceback.startswith("Trace")
    assert findings.runs[0].curves[0].points[0][0] == 4
    assert len(findings.maps) == 4 * (len(SYSTEMS) - 1)
    assert len(findings.maps[0].matrix) == len(findings.maps[0].tokens)
    (origin,) = findings.origins
    assert origin.measurements == len((findings.folder / "results.jsonl").read_text().splitlines())


def test_growths_and_crossovers(findings):
    growths = {(each.system, each.phase, each.quantity): each for each in findings.growths()}
    softmax = growths["softmax", "forward", "seconds"]
    assert abs(softmax.exponent - 1.9) < 0.05
    assert isclose(softmax.factor * 1024**softmax.exponent, findings.costs_of("softmax", "forward")[1].best,
                   rel_tol=0.05)  # fmt: skip
    assert growths["softmax", "decode", "state_bytes"].exponent == pytest.approx(1)
    crossings = {(each.system, each.phase): each for each in findings.crossovers()}
    # 0.95·2·x^1.9 = a·x with x in thousands of tokens.
    assert crossings["base-conv", "forward"].length == 512
    assert crossings["lightning-attention-2", "forward"].how == "measured"
    assert crossings["lightning-attention-2", "forward"].length == 4096
    assert crossings["flowformer", "forward"].length == 4096
    assert crossings["moh", "forward"].length is None


def test_a_crossover_beyond_what_was_measured_is_extrapolated_and_said_so():
    baseline = {100: 1.0, 200: 4.0}
    own = {100: 8.0, 200: 16.0}
    # 0.95·4·x² = 16·x at x = 16 / 3.8 times 200.
    found = find_crossover(own, baseline, "own", "forward")
    assert found == Crossover("own", "forward", pytest.approx(200 * 16 / 3.8), "extrapolated")
    assert str(found) == "~842 (extrapolated)"
    far = {length: 1000 * seconds for length, seconds in own.items()}
    assert find_crossover(far, baseline, "own", "forward").how == "never"
    assert find_crossover({100: 8.0, 200: 33.0}, baseline, "own", "forward").how == "never"
    assert find_crossover({300: 1.0}, baseline, "own", "forward") is None


def test_from_one_length_a_system_is_ahead_there_or_nothing_is_known():
    slower = find_crossover({100: 8.0}, {100: 1.0, 200: 4.0}, "own", "forward")
    assert slower == Crossover("own", "forward", None, "unknown")
    assert str(slower) == "takes two lengths"
    assert find_crossover({200: 3.0}, {200: 4.0}, "own", "forward").length == 200


def test_a_torn_line_is_passed_over(tmp_path):
    folder = write_sample(tmp_path)
    whole = Findings.read(folder)
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"unit": "cost/softmax/for')
    assert Findings.read(folder) == whole


def test_a_folder_without_a_comparison_is_told_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"holds no comparison: there is no plan\.json"):
        Findings.read(tmp_path)


def test_differences_inside_the_spread_are_ties():
    found = rank({"a": [0.90, 0.92], "b": [0.89, 0.90], "c": [0.5, 0.52]}, higher_is_better=True)
    assert [(each.system, each.rank) for each in found] == [("a", 1), ("b", 1), ("c", 3)]
    assert found[0].ties == ("b",)
    assert found[2].ties == ()
    # b's own deviation is half of the others': the pooled one stands in for it.
    assert found[1].deviation == pytest.approx(0.005 * 2**0.5)
    assert found[1].spread == pytest.approx((0.0002 / 3 + 0.0002 / 3 + 0.00005 / 3) ** 0.5)
    lower = rank({"a": [2.0, 2.01], "b": [1.5, 1.51]}, higher_is_better=False)
    assert [each.system for each in lower] == ["b", "a"]


def test_a_system_with_one_seed_so_far_has_the_pooled_spread_of_the_others():
    found = rank({"a": [0.90, 0.92], "b": [0.89], "c": [0.5, 0.52], "d": [0.2]}, higher_is_better=True)
    pooled = (2 * 0.0002 / 2) ** 0.5
    assert [each.spread for each in found] == pytest.approx([pooled] * 4)
    assert [each.deviation is None for each in found] == [False, True, False, True]
    assert [each.borrowed for each in found] == [False, True, False, True]
    assert [(each.system, each.rank) for each in found] == [("a", 1), ("b", 1), ("c", 3), ("d", 4)]
    assert about_single_seeds(found) == "One seed so far, with the pooled spread of the others: b, d."
    assert about_single_seeds(found[::2]) == ""


def test_where_all_have_a_single_seed_nobody_is_ahead():
    found = rank({"a": [0.9], "b": [0.1]}, higher_is_better=True)
    assert [each.rank for each in found] == [1, 1]
    assert found[0].spread is None
