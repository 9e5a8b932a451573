"""The memory of pairs, its capacity, and conditioning."""

import pytest
import torch

from regardant.structure.associative_memory import (
    AssociativeMemory,
    acquisition,
    blocking,
    capacity,
    extinction,
    mean_interference,
    worst_interference,
)

A, B = torch.eye(6, dtype=torch.float64)[:2]
OUTCOME = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def memory(rule, **config):
    return AssociativeMemory(6, 3, rule=rule, **config)


def test_writing_and_reading_one_by_one_is_the_sequence_form():
    for generator_seed in range(2):
        generator = torch.Generator().manual_seed(generator_seed)
        for example in AssociativeMemory.examples(generator):
            store, (key, value, query) = AssociativeMemory(**example.config), example.inputs
            state = store.start(len(key), dtype=torch.float64)
            for t in range(key.shape[1]):
                state = store.write(state, key[:, t], value[:, t])
                said = store.read(state, query[:, t])
                torch.testing.assert_close(store(key, value, query)[:, t], said, rtol=0, atol=1e-10)


def test_acquisition_by_hand():
    assert acquisition(memory("hebb", rate=0.25), A, OUTCOME, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert acquisition(memory("delta", rate=0.5), A, OUTCOME, 3) == pytest.approx([0.5, 0.75, 0.875])


def test_extinction_with_decay_and_delta_and_not_with_hebb():
    assert extinction(memory("hebb"), A, OUTCOME, trials=2, without=3) == pytest.approx([2.0] * 4)
    delta = extinction(memory("delta", rate=0.5), A, OUTCOME, trials=1, without=2)
    assert delta == pytest.approx([0.5, 0.25, 0.125])
    decay = extinction(memory("decay", forget=0.5), A, OUTCOME, trials=1, without=2)
    assert decay == pytest.approx([1.0, 0.5, 0.25])


def test_what_is_foreseen_blocks_learning_with_the_delta_rule_alone():
    blocked, control = blocking(memory("delta", rate=0.5), A, B, OUTCOME, 40)
    assert blocked == pytest.approx(0, abs=1e-6) and control == pytest.approx(0.5, abs=1e-6)
    blocked, control = blocking(memory("hebb"), A, B, OUTCOME, 5)
    assert blocked == control == pytest.approx(5)


def test_pitfall_the_two_interferences_are_two_laws():
    """Three keys of which two are alike: by hand."""
    keys = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert worst_interference(keys) == pytest.approx(1)
    assert mean_interference(keys) == pytest.approx((2 / 3) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    worst = [capacity(d, worst_interference, generator=generator, draws=10) for d in (256, 1024)]
    mean = [capacity(d, mean_interference, generator=generator, draws=2) for d in (256, 1024)]
    assert 1.5 < worst[1] / worst[0] < 2.7
    assert 3.5 < mean[1] / mean[0] < 4.5
    assert mean[0] == pytest.approx(256 / 4, rel=0.1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="from another configuration"):
        memory("hebb").write(torch.zeros(1, 6, 4), torch.zeros(1, 6), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="value has shape"):
        memory("hebb")(torch.zeros(1, 2, 6), torch.zeros(1, 2, 4), torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="keys is 0"):
        AssociativeMemory(0, 3)
