from regardant.compare import clock as module
from regardant.compare.clock import Timing, clock


def test_calls_take_turns_after_the_warm_up():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    found = dict(clock(calls, budget=0, least=3))
    assert order == ["a", "b", *"ababab"]
    assert {name: timing.repetitions for name, timing in found.items()} == {"a": 3, "b": 3}


def test_warm_calls_are_not_warmed_up():
    order = []
    dict(clock({"a": lambda: order.append("a")}, budget=0, least=2, warm=True))
    assert order == ["a", "a"]


def test_repetitions_are_bounded():
    found = dict(clock({"a": lambda: None}, budget=60, least=1, most=5))
    assert found["a"].repetitions == 5


def test_a_call_that_has_its_budget_leaves_the_turns(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    calls = {"slow": lambda: wait(1.0), "quick": lambda: wait(0.1)}
    order = [name for name, _ in clock(calls, budget=1.0, least=2)]
    found = dict(clock(calls, budget=1.0, least=2))
    assert order == ["slow", "quick"]
    assert found["slow"].repetitions == 2
    assert found["quick"].repetitions in (10, 11)


def test_a_timing_is_the_median_and_the_best():
    assert Timing.of([3.0, 1.0, 2.0, 9.0]) == Timing(2.5, 1.0, 4, quartiles=(1.75, 4.5))
    assert Timing.of([2.0]) == Timing(2.0, 2.0, 1, quartiles=(2.0, 2.0))
