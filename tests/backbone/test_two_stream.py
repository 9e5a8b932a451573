"""Small networks that answer a program about a scene."""

import pytest
import torch
from torch import nn

from regardant.backbone.two_stream import CrossStream, DualStream, RecurrentStream, SingleStream
from regardant.task.gcog import GCOG

SYSTEMS = [RecurrentStream, SingleStream, DualStream, CrossStream]
TASK = GCOG(grid=3, colours=3, letters=3, depths=(1, 3), distractors=(0, 2))


def made(system, seed=0, **own):
    torch.manual_seed(seed)
    sizes = dict(symbols=TASK.symbols, classes=TASK.classes, rules=TASK.rules, cells=TASK.cells, dim=16)
    return system(**sizes | own).double().eval()


def drawn(size=6, seed=0):
    return TASK.batch(size, torch.Generator().manual_seed(seed))[0]


@pytest.mark.parametrize("system", SYSTEMS)
def test_scores_of_every_answer_equal_the_reference(system):
    model, rows = made(system, layers=2), drawn()
    scores = model(rows)
    assert scores.shape == (6, TASK.classes)
    torch.testing.assert_close(scores, model.reference(rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
def test_both_program_and_scene_matter(system):
    model, rows = made(system), drawn()
    other = drawn(seed=1)
    scores = model(rows)
    for part in (slice(None, TASK.rules), slice(TASK.rules, None)):
        mixed = rows.clone()
        mixed[:, part] = other[:, part]
        assert (model(mixed) - scores).abs().amax(1).min() > 1e-6


@pytest.mark.parametrize("system", SYSTEMS)
def test_pitfall_what_stands_behind_the_end_of_a_program_is_not_read(system):
    model, rows = made(system), drawn()
    changed = rows.clone()
    for sample in range(len(rows)):
        end = int(rows[sample, : TASK.rules, 3].argmax())
        changed[sample, end + 1 : TASK.rules, :3] = 2
    torch.testing.assert_close(model(changed), model(rows), rtol=0, atol=1e-12)


def test_a_block_is_normed_after_each_part():
    model = made(CrossStream)
    x, context = torch.randn(2, 2, 5, 16, dtype=torch.float64)
    block = model.cross
    attended = block.first_norm(x + block.attention(x, context))
    torch.testing.assert_close(
        block(x, context, None, plainly=False), block.second_norm(attended + block.mlp(attended))
    )


def test_the_plain_gru_is_torchs():
    model = made(RecurrentStream, layers=2)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(model._plainly(x), model.gru(x)[0][:, -1], rtol=0, atol=1e-12)
    assert isinstance(model.gru, nn.GRU)


def test_two_streams_that_are_added_never_meet_before():
    """A change of the scene moves the sum by the same vector, whatever the program."""
    model, rows = made(DualStream), drawn()
    model.head = nn.Identity()
    scene = rows.clone()
    scene[:, TASK.rules :] = drawn(seed=1)[:1, TASK.rules :]
    scene_too = rows.clone()
    scene_too[:, TASK.rules :] = drawn(seed=2)[:1, TASK.rules :]
    moved = model(scene) - model(scene_too)
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=0, atol=1e-12)


def test_bad_input():
    model, rows = made(CrossStream), drawn()
    with pytest.raises(ValueError, match="whole numbers"):
        model(rows[:, 1:])
    rows[:, : TASK.rules, 3] = 0
    with pytest.raises(ValueError, match="no end row"):
        model(rows)
    with pytest.raises(ValueError, match="layers is 0"):
        made(CrossStream, layers=0)
