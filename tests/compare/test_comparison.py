"""What a comparison measures, leaves out, survives and goes on from; in this process, on tiny models."""

import json
from dataclasses import replace

import pytest

from regardant.compare import small_sizes
from regardant.compare.comparison import Comparison
from regardant.compare.findings import Findings
from regardant.compare.folder import Folder
from regardant.compare.peak import OutOfMemory, PeakMeter
from regardant.compare.planning import Asked
from regardant.compare.trials import TRIALS, Setting
from tests.compare.here import Here

TINY = dict(dim=8, heads=2, layers=1, seeds=2, lengths=(64, 128), budget=900.0, device="cpu")
RECALL = dict(vocabulary=24, length=16, pairs=2, held_out=8)


@pytest.fixture(autouse=True)
def tiny_trials(monkeypatch):
    """Six steps of four samples, however much time there is: nobody learns anything."""
    monkeypatch.setattr(small_sizes, "SIZES", small_sizes.SIZES[:1])
    for name, options in (("recall", RECALL), ("bytes", dict(length=16, held_out=4))):
        sizes = {"small": Setting(options, batch=4, least=1, enough=4, most=6)}
        monkeypatch.setitem(TRIALS, name, replace(TRIALS[name], sizes=sizes))


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Peaks are measured in processes of their own (test_peak.py); here one is as good as another."""

    def measure(meter, setting, phase, length, *, threads):
        if setting.system.endswith("Large") and length > 64:
            raise OutOfMemory("what was asked for")
        return 2**21 + length

    monkeypatch.setattr(PeakMeter, "measure", measure)
    monkeypatch.setattr("regardant.compare.bench.cores", lambda: 1)


def compare(folder, *names, engine=None, fresh=False, **ask):
    """A comparison, its `run`, and the engines that it started."""
    engines = []

    def start():
        engines.append(engine or Here())
        return engines[-1]

    asked = Asked(names=names or ("softmax",), **(TINY | dict(tasks=("recall",)) | ask))
    comparison = Comparison(asked, Folder(folder, fresh=fresh), engine=start)
    return comparison, comparison.run, engines


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def failures(findings, system):
    return {each.unit.split("/", 2)[2]: each for each in findings.failures if each.system == system}


def test_cost_and_quality_of_every_system_with_the_baseline_beside(tmp_path):
    comparison, run, engines = compare(tmp_path, "moh", tasks=("recall", "bytes"))
    findings = run()
    (engine,) = engines
    assert findings.names == ["softmax", "moh"]
    assert {(cost.system, cost.phase, cost.length) for cost in findings.costs} == {
        (system, *rest)
        for system in ("softmax", "moh")
        for rest in [(phase, n) for phase in ("forward", "backward") for n in (64, 128)]
        + [("decode", 100), ("decode", 1000)]
    }
    assert all(cost.best <= cost.seconds and cost.left_out is None for cost in findings.costs)
    assert all(cost.state_bytes > 0 for cost in findings.costs if cost.phase == "decode")
    assert {(run.system, run.task, run.seed) for run in findings.runs} == {
        (system, task, seed)
        for system in ("softmax", "moh") for task in ("recall", "bytes") for seed in (0, 1)
    }  # fmt: skip
    assert len(lines(tmp_path)) == 12 + 8 and comparison.missing == 0
    assert engine.closed
    # What is timed has the machine to itself.
    assert all(alone == name.startswith("cost/") for name, alone in engine.asked if "/" in name)


def test_all_models_have_the_same_parameters_and_tokens(tmp_path):
    findings = compare(tmp_path, "moh", "lightning-attention-2", "base-conv", dim=32)[1]()
    task = findings.task("recall")
    assert len(findings.runs) == 8
    for run in findings.runs:
        assert abs(run.parameters - task.parameters) <= 0.02 * task.parameters
        assert run.tokens == task.steps * 4 * 16
        assert run.learning[-1][0] == run.tokens
    assert findings.runs[0].curves[0].over == "distance"


def test_a_line_says_all_that_it_takes_to_mean_something(tmp_path):
    compare(tmp_path)[1]()
    for line in lines(tmp_path):
        assert line["seed"] in (0, 1) and line["machine"] and line["device"] == "cpu"
        assert set(line["versions"]) == {"python", "torch", "regardant"}
        assert line["date"] and len(line["made_with"]) == 16 and "commit" in line
        assert line["outcome"] == "measured" and line["took"] > 0


def test_maps_of_the_first_seed_are_of_one_input(tmp_path):
    findings = compare(tmp_path, "moh", "base-conv")[1]()
    maps = [each for each in findings.maps if each.system == "softmax"]
    assert [(each.layer, each.head) for each in maps] == [(0, 0), (0, 1)]
    assert [sum(row) for row in maps[0].matrix] == pytest.approx([1] * 16, abs=0.01)
    assert all(value == 0 for at, row in enumerate(maps[0].matrix) for value in row[at + 1 :])
    assert len({each.tokens for each in findings.maps}) == 1
    (no_map,) = [each for each in findings.failures if each.system == "base-conv" and "maps" in each.unit]
    assert "no mixing matrix" in no_map.reason


def test_a_second_run_begins_nothing(tmp_path):
    first = compare(tmp_path)[1]()
    written = (tmp_path / "results.jsonl").read_bytes()
    _, run, engines = compare(tmp_path)
    assert run() == first
    assert engines == []
    assert (tmp_path / "results.jsonl").read_bytes() == written


@pytest.mark.parametrize("answers", [2, 5, 9])
def test_a_run_that_was_ended_goes_on(tmp_path, answers):
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, engine=Here(stop_after=answers))[1]()
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"unit": "cost/softmax/forw')
    _, run, engines = compare(tmp_path)
    run()
    found = [line["unit"] for line in lines(tmp_path)]
    assert sorted(found) == sorted(set(found))
    assert len(found) == 6 + 2
    measured = [name for name, _ in engines[0].asked if "/" in name]
    # Two answers are to the look around and to the survey.
    assert len(measured) == 8 - (answers - 2)


def test_what_other_code_measured_is_measured_again(tmp_path):
    compare(tmp_path)[1]()
    found = lines(tmp_path)
    found[3]["made_with"] = "0" * 16
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    _, run, engines = compare(tmp_path)
    findings = run()
    assert [name for name, _ in engines[0].asked if "/" in name] == [found[3]["unit"]]
    assert len(lines(tmp_path)) == len(found) + 1
    assert len(findings.costs) == 6


def test_another_question_is_refused_in_the_same_folder_unless_fresh(tmp_path):
    compare(tmp_path)[1]()
    with pytest.raises(ValueError, match=r"holds another comparison: seeds is 2 there and 1 here.*--fresh"):
        compare(tmp_path, seeds=1)
    assert len(compare(tmp_path, seeds=1, fresh=True)[1]().runs) == 1


@pytest.mark.parametrize("ask", [dict(tasks=("recal",)), dict(heads=3), dict(device="abacus")])
def test_a_wrong_question_does_not_cost_what_was_measured_even_fresh(tmp_path, ask):
    first = compare(tmp_path)[1]()
    with pytest.raises(ValueError):
        compare(tmp_path, fresh=True, **ask)[1]()
    with pytest.raises(ValueError, match="no system is called 'mohh'"):
        compare(tmp_path, "mohh", fresh=True)
    assert Findings.read(tmp_path) == first


def test_another_machine_is_refused(tmp_path):
    compare(tmp_path)[1]()
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"machine": "An abacus"}))
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match="where An abacus was measured, but this is"):
        compare(tmp_path)[1]()


def test_a_length_that_a_system_does_not_take_is_skipped_and_the_rest_goes_on(tmp_path):
    findings = compare(tmp_path, "odd_layers:Short")[1]()
    own = failures(findings, "odd_layers:Short")
    assert own["forward/128"].outcome == "skipped"
    assert own["forward/128"].reason == "x is 128 tokens long, but this layer takes at most 64"
    assert own["decode/100"].reason == "odd_layers:Short does not decode step by step"
    costs = {(cost.phase, cost.length): cost for cost in findings.costs if cost.system == "odd_layers:Short"}
    assert costs["forward", 64].best > 0
    assert costs["forward", 128].left_out == own["forward/128"].reason
    assert len(findings.runs) == 4


def test_a_system_that_fails_is_marked_with_its_traceback(tmp_path):
    findings = compare(tmp_path, "odd_layers:Breaks")[1]()
    own = failures(findings, "odd_layers:Breaks")
    for unit in ("backward/64", "recall/0", "recall/1"):
        assert own[unit].outcome == "failed"
        assert own[unit].reason == "RuntimeError: no gradient today"
        assert "odd_layers.py" in own[unit].traceback
    assert "forward/64" not in own
    assert [run.system for run in findings.runs] == ["softmax", "softmax"]


def test_a_training_that_comes_apart_is_marked(tmp_path):
    findings = compare(tmp_path, "odd_layers:Nan")[1]()
    failure = failures(findings, "odd_layers:Nan")["recall/0"]
    assert failure.outcome == "failed"
    assert failure.reason.startswith("the loss is nan at step 1 of")
    assert "Traceback" in failure.traceback


def test_a_size_without_memory_is_recorded_and_smaller_ones_are_kept(tmp_path):
    findings = compare(tmp_path, "odd_layers:Large")[1]()
    own = failures(findings, "odd_layers:Large")
    assert own["forward/128"].outcome == own["backward/128"].outcome == "no memory"
    assert "forward/64" not in own
    assert len(findings.runs) == 4


def test_a_model_that_sees_the_future_is_not_listed(tmp_path):
    findings = compare(tmp_path, "odd_layers:Clairvoyant")[1]()
    failure = failures(findings, "odd_layers:Clairvoyant")["recall/0"]
    assert failure.outcome == "failed"
    assert failure.reason.startswith("it sees the future: other tokens from 1 on moved the output at 0")
    assert {run.system for run in findings.runs} == {"softmax"}


def test_what_is_too_good_is_put_through_the_contracts_probe(tmp_path, monkeypatch):
    monkeypatch.setattr(Findings, "too_good", lambda self, task: ["moh", "odd_layers:Clairvoyant"])
    monkeypatch.setattr("regardant.compare.training.look_ahead", lambda model, lesson: None)
    findings = compare(tmp_path, "moh", "odd_layers:Clairvoyant")[1]()
    probes = {run.system: run.probe for run in findings.runs}
    assert probes == {"softmax": None, "moh": "no change to the future moved the past"}
    assert "future leak" in failures(findings, "odd_layers:Clairvoyant")["recall"].reason
    _, run, engines = compare(tmp_path, "moh", "odd_layers:Clairvoyant")
    assert run() == findings and engines == []


def test_a_process_that_dies_once_loses_nothing_and_twice_is_written_down(tmp_path):
    dies = {"quality/softmax/recall/0": 1, "cost/softmax/forward/64": 2}
    findings = compare(tmp_path, engine=Here(dies=dies))[1]()
    assert len(findings.runs) == 2
    (failure,) = findings.failures
    assert failure.unit == "cost/softmax/forward/64"
    assert failure.reason == "its process ended with status -9, 2 times"
    assert len(lines(tmp_path)) == 8


def test_a_process_that_dies_while_it_looks_at_the_device_is_told(tmp_path):
    with pytest.raises(ValueError, match="device is 'cpu', and the process that was to look at it ended"):
        compare(tmp_path, engine=Here(dies={"device": 1}))[1]()


def test_the_budget_is_held(tmp_path, monkeypatch):
    now = iter(range(0, 10_000, 5))
    monkeypatch.setattr("regardant.compare.comparison.monotonic", lambda: float(next(now)))
    comparison, run, _ = compare(tmp_path, budget=60.0)
    findings = run()
    assert comparison.missing > 0
    assert len(findings.costs) + len(findings.runs) + comparison.missing == 6 + 2


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (dict(names=("mohh",)), "no system is called 'mohh'; the nearest are moh"),
        (dict(names=("moh", "ccnet")), "of the kinds grid and sequence"),
        (dict(names=("moh@top",)), "'moh@top' has the option 'top'"),
        (dict(names=("moh@top=1",)), "'moh' takes no 'top' .given 1.; the nearest are top_k"),
        (dict(names=("softmax+moh@topk=1",)), "'moh' takes no 'topk'"),
        (dict(names=("cab-reversal",)), "is of kind task"),
        (dict(kind="grids"), "no kind that can be compared is called 'grids'"),
        (dict(names=("moh",), kind="grid"), "one or the other"),
        (dict(tasks=("recal",)), "no task is called 'recal'; the nearest are recall"),
        (dict(tasks=("digits",)), "which is for systems of grid, but these are of sequence"),
        (dict(dim=10, heads=4), "heads is 4, but dim=10 is not a multiple"),
        (dict(lengths=(0,)), "lengths is"),
        (dict(budget=0.0), "budget is 0 s"),
        (dict(device="abacus"), "device is 'abacus'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, ask, says):
    with pytest.raises(ValueError, match=says) as told:
        asked = Asked(**(TINY | ask))
        Comparison(asked, Folder(tmp_path), engine=Here).run()
    assert "\n" not in str(told.value)
