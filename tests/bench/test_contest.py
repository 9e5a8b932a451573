import pytest
import torch

from bench.contest import Contest


def contest(**about):
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    return Contest(lambda x: x * 2, lambda x: x + x + 1e-3, (x,), **about)


def test_outputs_are_compared_with_each_other_and_with_the_plain_way():
    found = contest(exact=lambda x: x * 2).differences()
    assert found["ours"] == 0
    assert found["theirs"] == found["ours_from_theirs"] == pytest.approx(1e-3, rel=1e-2)


def test_the_plain_way_is_left_out_where_it_is_too_long():
    assert set(contest(exact=lambda x: x * 2).differences(exact_up_to=3)) == {"ours_from_theirs"}


def test_other_mathematics_is_not_compared():
    assert contest(same=False).differences() == {}


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_both_are_timed_alike(phase):
    ours, theirs = contest().clock(phase, budget=0)
    assert ours.repetitions == theirs.repetitions == 20
    assert 0 < ours.best <= ours.median


def test_slow_runs_are_repeated_less_but_five_times_at_least():
    ours, theirs = contest().clock("forward", budget=0, longest=0)
    assert ours.repetitions == theirs.repetitions == 5


def test_the_backward_reaches_inputs_and_weights():
    reached = []
    weight = torch.ones(8, requires_grad=True)
    x = torch.ones(1, 4, 8)
    weight.register_hook(lambda grad: reached.append(grad.shape))
    Contest(lambda x: x * weight, lambda x: x * weight, (x,), ([weight], [weight])).clock(
        "backward", budget=0, longest=0
    )
    assert reached
    assert set(reached) == {(8,)}


def test_a_peer_without_a_backward_runs_forward_only():
    assert contest(backward=False).phases() == ("forward",)
    assert contest().phases() == ("forward", "backward")
