import pytest
import torch

from bench import limits, targets
from bench.target import Target, table


@pytest.mark.parametrize(
    ("passes", "stretch", "value", "verdict"),
    [
        (1.3, 2.0, 2.0, "stretch"),
        (1.3, 2.0, 1.3, "pass"),
        (1.3, 2.0, 1.29, "behind"),
        (20, 8, 7.0, "stretch"),
        (20, 8, 20.0, "pass"),
        (20, 8, 21.0, "behind"),
    ],
)
def test_a_verdict_knows_which_way_is_better(passes, stretch, value, verdict):
    assert Target("", passes, stretch, None).verdict(value) == verdict


def test_names_are_unique_and_cover_the_rows():
    names = [target.name for target in targets.targets()]
    assert len(set(names)) == len(names)
    assert {name.split()[0] for name in names} == {"C1", "C2", "C3", "C4", "C5", "C7"}


def test_the_table_has_what_was_measured():
    name = targets.targets()[0].name
    text = table(
        "All", targets.targets(), {name: {"value": 0.5}}, {"machine": "here", "versions": {"torch": "2"}}
    )
    assert f"| {name} | 0.4 | 0.6 | 0.5 | pass |" in text
    assert text.count("\n| C") == 1


@pytest.mark.parametrize("function", [targets.linear, targets.window, targets.causal, targets.sdpa])
def test_calls_run_forward_and_backward(function):
    inputs = targets.draw(48)
    torch.testing.assert_close(targets.run(function, inputs)(), function(*inputs))
    grads = targets.run(function, inputs, backward=True)()
    assert [grad.shape for grad in grads] == [x.shape for x in inputs]
    assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)


def test_the_best_repetition_is_a_time():
    one = torch.zeros(1)
    assert 0 < limits.best(lambda: one.add_(1), budget=0, device=torch.device("cpu")) < 1
    assert one.item() >= 10
