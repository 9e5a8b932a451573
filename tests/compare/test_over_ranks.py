"""What layers cost over ranks, and the bench's targets made of it."""

from functools import partial

from bench import parallel
from regardant.compare import over_ranks
from regardant.parallel.processes import on_ranks


def test_what_is_sent_is_counted_length_by_length():
    count = partial(over_ranks.sent, dim=16, heads=2)
    linear, ring = (
        on_ranks(2, count, *contestant, (16, 32))[0] for contestant in (parallel.LINEAR, parallel.SOFTMAX)
    )
    state = 2 * 8 * 8 * 4
    assert linear == [over_ranks.Sent(2, 2 * state, 2 * state)] * 2
    assert [each.steps for each in ring] == [4, 4]
    assert ring[1].sent == 2 * ring[0].sent


def test_a_slow_network_costs_lasps_ring_a_step_a_rank():
    """Two steps in any case for LASP-2; the last of three ranks waits for two before it, there and back."""
    found = on_ranks(3, partial(over_ranks.over_a_slow_network, step=0.05, repetitions=3), 24)
    for gathered, ring in found:
        assert gathered >= 0.1
        assert ring >= 0.2


def test_what_an_exchange_costs_is_measured_beside_work_and_alone():
    for beside_work, alone in on_ranks(2, partial(over_ranks.waiting, heads=2, width=8, repetitions=2), 32):
        assert 0 < beside_work < 60 and 0 < alone < 60


def test_the_targets_of_c8_have_names_of_their_own_and_the_counted_ones_are_met():
    targets = {target.name: target for target in parallel.targets()}
    assert len(targets) == len(parallel.targets()) == 6
    steps = targets["C8 LASP-2, 2 processes: collectives, forward and backward"]
    value, _ = steps.measure(None)
    assert (value, steps.verdict(value)) == (2, "stretch")
    assert steps.verdict(3) == "behind"
