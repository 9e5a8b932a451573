"""One task for each of the four uses."""

import pytest
import torch

from regardant.task.bytes import Bytes
from regardant.task.four_uses import Completion, MaskedBytes, NextBytes, Reversal, draw_outlines
from regardant.task.score import IGNORED


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for at in range(40):
        (folder / f"module{at}.py").write_text(f"value_{at} = {at}\n" * 40)
    return folder


def test_hidden_bytes_are_the_ones_asked_for(library):
    task = MaskedBytes(folder=library, hidden=0.2)
    tokens, labels = task.batch(200, generator())
    asked = labels != IGNORED
    assert torch.equal(tokens == task.mask, asked)
    assert asked.any(dim=1).all() and abs(asked.double().mean() - 0.2) < 0.02
    shown = Bytes(folder=library, length=64).batch(200, generator())[0]
    assert torch.equal(torch.where(asked, labels, tokens), shown)


def test_the_same_bytes_are_hidden_in_every_validation(library):
    task = MaskedBytes(folder=library, held_out=64)
    first, second = (torch.cat([tokens for tokens, _ in task.validation()]) for _ in range(2))
    assert torch.equal(first, second) and (first == task.mask).any()


def test_next_bytes_are_shifted_by_one(library):
    tokens, targets = NextBytes(folder=library).batch(4, generator())
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_an_outline_is_its_own_image_under_a_half_turn():
    """Points asked, turned about the centre, lie on the curve that is seen: found by interpolation."""
    known, wanted = draw_outlines(1, seen=4000, asked=12, generator=generator(3))
    draw = generator(3)
    centre = 0.3 * torch.randn(1, 1, 2, generator=draw)
    image = 2 * centre - wanted
    distance = (image[:, :, None] - known[:, None]).norm(dim=-1).amin(dim=-1)
    assert distance.max() < 0.01


def test_points_are_seen_in_no_order_and_asked_in_the_order_of_their_angle():
    known, wanted = draw_outlines(50, seen=30, asked=8, generator=generator())
    centre = 0.3 * torch.randn(50, 1, 2, generator=generator())
    away = wanted - centre
    angle = torch.atan2(-away[..., 1], -away[..., 0])
    torch.testing.assert_close(angle, torch.pi * (torch.arange(8) + 0.5).expand(50, -1) / 8)
    away = known - centre
    turned = torch.atan2(away[..., 1], away[..., 0])
    assert turned.min() > -1e-4 and abs((turned[:, 1:] > turned[:, :-1]).double().mean() - 0.5) < 0.05


def test_what_is_said_is_the_memory_backwards():
    task = Reversal(symbols=5, memory=6)
    inputs, targets = task.batch(3, generator())
    memory, said = inputs[:, :6], inputs[:, 6:]
    assert torch.equal(targets, memory.flip(1))
    assert (said[:, 0] == 5).all() and torch.equal(said[:, 1:], targets[:, :-1])


def test_metrics_by_hand():
    task = Completion(seen=3, asked=2)
    total, count = task.metric(torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]))
    assert (total, count) == (26, 2)
    assert task.loss(torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])) == 13


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MaskedBytes(hidden=1.0), "hidden is 1"),
        (lambda: Reversal(symbols=1), "symbols is 1"),
        (lambda: Reversal(memory=0), "memory is 0"),
        (lambda: Completion(seen=0).batch(1, generator()), "seen=0"),
    ],
)
def test_bad_input(make, word):
    with pytest.raises(ValueError, match=word):
        make()
