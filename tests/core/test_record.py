"""The side channel of a forward pass."""

import torch

from regardant.core.record import Record


def test_losses_add_up_and_there_may_be_none():
    record = Record()
    assert record.loss() == 0.0
    record.add_loss("balance", torch.tensor(1.5))
    record.add_loss("balance", torch.tensor(2.0))
    record.add_loss("commitment", torch.tensor(0.25))
    assert record.loss() == torch.tensor(3.75)


def test_observations_keep_the_order_of_the_layers():
    record = Record()
    record.note("gates", torch.tensor(1))
    record.note("gates", torch.tensor(2))
    assert [value.item() for value in record.seen["gates"]] == [1, 2]


def test_observations_that_nobody_asked_for_are_not_kept():
    record = Record(noting=False)
    record.note("gates", torch.tensor(1))
    assert not record.seen


def test_deferred_changes_wait_for_settle_and_count_once_an_owner():
    record, one, other, done = Record(), object(), object(), []
    record.defer(one, lambda: done.append("first, replaced"))
    record.defer(other, lambda: done.append("other"))
    record.defer(one, lambda: done.append("second"))
    assert done == []
    record.settle()
    assert sorted(done) == ["other", "second"]
    record.settle()
    assert len(done) == 2
