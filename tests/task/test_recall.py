"""Multi-query associative recall: what the generator promises."""

import pytest
import torch

from regardant.task.recall import Recall, distances, draw_recall, split
from regardant.task.score import IGNORED


def drawn(size=256, *, vocabulary=256, length=64, pairs=4, seed=0, **own):
    generator = torch.Generator().manual_seed(seed)
    return draw_recall(
        size, vocabulary=vocabulary, length=length, pairs=pairs, generator=generator, **own
    )  # fmt: skip


def test_labels_are_the_values_at_the_repeated_keys_and_ignored_elsewhere():
    tokens, labels = drawn()
    for row, its in zip(tokens.tolist(), labels.tolist()):
        value_of = dict(zip(row[0:8:2], row[1:8:2]))
        asked = [at for at, label in enumerate(its) if label != IGNORED]
        assert len(asked) == 4
        assert all(at >= 8 and at % 2 == 0 for at in asked)
        assert {row[at]: its[at] for at in asked} == value_of


def test_keys_and_values_are_distinct_and_in_their_halves():
    tokens, _ = drawn(vocabulary=130, pairs=16)
    keys, values = tokens[:, 0:32:2], tokens[:, 1:32:2]
    assert keys.min() == 1 and keys.max() == 64
    assert values.min() == 65 and values.max() == 129
    for side in (keys, values):
        assert (side.sort(dim=1).values.diff(dim=1) > 0).all()


def test_keys_stand_in_random_order_and_every_one_is_as_likely():
    keys = drawn(20_000, vocabulary=128)[0][:, 0:8:2]
    counts = torch.bincount(keys.flatten(), minlength=64)[1:].double()
    expected = keys.numel() / 63
    assert ((counts - expected) / expected**0.5).square().mean() < 1.6
    assert abs((keys[:, 0] > keys[:, 1]).double().mean() - 0.5) < 0.02


def test_gaps_follow_the_power_law():
    # With one pair the slot is a single draw: p(g) ∝ g^(a-1).
    _, labels = drawn(40_000, pairs=1, power=0.3)
    slot = ((labels != IGNORED).int().argmax(dim=1) - 2) // 2
    found = torch.bincount(slot, minlength=31).double() / len(slot)
    law = torch.arange(1, 32, dtype=torch.float64).pow(0.3 - 1)
    assert (found - law / law.sum()).abs().max() < 0.01


def test_short_gaps_are_commoner_by_default():
    labels = drawn(4_000, pairs=1)[1]
    slot = ((labels != IGNORED).int().argmax(dim=1) - 2) // 2
    assert (slot == 0).double().mean() > 5 * (slot == 9).double().mean()


def test_other_tokens_come_from_the_whole_vocabulary():
    tokens, labels = drawn(2_000, vocabulary=100)
    filler = tokens[:, 8:][labels[:, 8:] == IGNORED]
    assert filler.min() == 0 and filler.max() == 99
    assert abs(filler.double().mean() - 49.5) < 0.5


def test_waiting_keeps_repeated_keys_away():
    tokens, labels = drawn(wait=10)
    asked = (labels != IGNORED).nonzero()[:, 1]
    assert asked.min() >= 8 + 20
    assert distances(tokens, 4)[labels != IGNORED].min() >= 20


def test_distances_lead_back_to_the_pair():
    tokens, labels = drawn(pairs=8)
    away = distances(tokens, 8)
    rows, at = (labels != IGNORED).nonzero(as_tuple=True)
    back = at - away[rows, at]
    assert (tokens[rows, back] == tokens[rows, at]).all()
    assert (tokens[rows, back + 1] == labels[rows, at]).all()


def test_the_same_generator_gives_the_same_and_the_global_one_is_not_touched():
    before = torch.get_rng_state()
    (one, its), (other, others) = drawn(seed=3), drawn(seed=3)
    assert torch.equal(one, other) and torch.equal(its, others)
    assert not torch.equal(one, drawn(seed=4)[0])
    assert torch.equal(before, torch.get_rng_state())


def test_validation_is_fixed_and_not_what_trainings_see():
    task = Recall(vocabulary=128, held_out=32)
    held_out = torch.cat([tokens for tokens, _ in task.validation()])
    assert torch.equal(held_out, torch.cat([tokens for tokens, _ in task.validation()]))
    seen = {tuple(row.tolist()) for seed in range(5) for row in drawn(64, vocabulary=128, seed=seed)[0]}
    assert not seen & {tuple(row.tolist()) for row in held_out}


def test_metric_counts_labelled_positions_alone():
    task = Recall(vocabulary=128)
    _, labels = task.batch(8, torch.Generator().manual_seed(0))
    right = torch.nn.functional.one_hot(labels.clamp(min=0), 128).float()
    hits, asked = task.metric(right, labels)
    assert (hits, asked) == (32, 32)
    right[0] = 0
    assert task.metric(right, labels)[0] == 28


def test_a_perfect_model_has_every_label():
    task = Recall(vocabulary=128)
    tokens, labels = task.batch(8, torch.Generator().manual_seed(0))
    outputs = task.perfect(tokens, labels)
    assert task.metric(outputs, labels) == (32, 32)
    assert task.loss(outputs, labels) == 0


def test_the_papers_splits():
    tokens, labels = split(512).batch(2, torch.Generator().manual_seed(0))
    assert tokens.shape == (2, 512) and ((labels != IGNORED).sum(dim=1) == 64).all()
    assert 4096 <= labels.max() < 8192
    assert sum(len(tokens) for tokens, _ in split(64).validation()) == 3000
    with pytest.raises(ValueError, match="length is 100, but the paper's are 64, 128, 256, 512"):
        split(100)


@pytest.mark.parametrize(
    ("own", "word"),
    [
        ({"length": 63}, "length is 63"),
        ({"pairs": 17}, "make length=64 at least 68"),
        ({"vocabulary": 64}, "vocabulary is 64"),
        ({"pairs": 0}, "pairs is 0"),
        ({"power": 0.0}, "power is 0"),
        ({"wait": 25}, "wait=25"),
    ],
)
def test_bad_input_is_said_in_a_sentence(own, word):
    with pytest.raises(ValueError, match=word):
        drawn(**own)
