"""Augmentations: each does what it says, draws from its generator, and leaves validation alone."""

import pytest
import torch
from torch.nn import functional as F

from regardant.contract import check
from regardant.task.shape_classes import ShapeClasses, ShapeMasks
from regardant.task.super_resolution import SuperResolution, halved
from regardant.train.augment import Augmented, erase, mirror, mix, shift


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=64, side=9):
    return torch.rand(count, 3, side, side + 2, generator=generator(5))


def test_mirror_turns_half_of_the_images_and_their_maps_with_them():
    before, maps = images(400), torch.arange(9 * 11).view(1, 9, 11).expand(400, 9, 11)
    after, turned = mirror(before, maps, generator())
    flipped = (after == before.flip(-1)).flatten(1).all(dim=1)
    assert torch.equal((after == before).flatten(1).all(dim=1), ~flipped)
    assert 0.4 < flipped.double().mean() < 0.6
    assert torch.equal(turned[flipped], maps[flipped].flip(-1)) and torch.equal(
        turned[~flipped], maps[~flipped]
    )
    labels = torch.arange(400)
    assert torch.equal(mirror(before, labels, generator())[1], labels)


def test_shift_moves_an_image_as_a_whole_and_lets_zeros_in():
    before = images(200)
    after = shift(before, 2, generator())
    padded = F.pad(before, (2, 2, 2, 2))
    seen = set()
    for old, new in zip(padded, after):
        places = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(old[:, y : y + 9, x : x + 11], new)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25


def test_erase_hides_one_rectangle_under_the_images_mean():
    before = images(100, side=12)
    after = erase(before, 0.25, generator())
    changed = (after != before).all(dim=1)
    assert (changed.sum(dim=(1, 2)) == 3 * round(0.25 * 14)).all()
    mean = before.mean(dim=(2, 3))
    for image, where, expected in zip(after, changed, mean):
        hidden = image[:, where]
        torch.testing.assert_close(hidden, expected[:, None].expand_as(hidden))


def test_mixed_images_and_labels_are_in_one_proportion():
    before, labels = images(6), torch.arange(6)
    after, soft = mix(before, labels, 6, 1.0, generator())
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(after, torch.einsum("nk,kchw->nchw", soft, before))


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_proportions_follow_the_beta_distribution(strength):
    random, two = generator(), torch.eye(2)
    shares = torch.stack(
        [mix(two[:, :, None, None], torch.arange(2), 2, strength, random)[1] for _ in range(2000)]
    )
    mixed = shares[shares[:, 0, 0] < 1][:, 0, 0]  # half of the pairings are of an image with itself
    assert abs(mixed.mean() - 0.5) < 0.05
    # Beta(s, s) has the variance 1 / (8 s + 4).
    assert mixed.var().item() == pytest.approx(1 / (8 * strength + 4), rel=0.15)


@pytest.mark.parametrize("own", [{"mirror": True, "shift": 2, "erase": 0.2}, {"mixup": 0.4}])
def test_an_augmented_task_keeps_the_contract_of_tasks(own):
    task = ShapeClasses(held_out=64)
    if "mixup" not in own:  # else targets are of another type in training
        report = check(Augmented, kind="task", config={"task": task} | own, examples=2)
        assert report.passed, str(report)
    augmented = Augmented(task, **own)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(augmented.validation(), task.validation()))
    first, again = (augmented.batch(8, generator(3)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_the_loss_of_mixed_labels_is_the_mixture_of_losses():
    task = Augmented(ShapeClasses(), mixup=1.0)
    outputs = torch.randn(4, 8, generator=generator(), dtype=torch.float64)
    labels, others = torch.tensor([0, 3, 5, 7]), torch.tensor([1, 1, 2, 7])
    soft = 0.3 * F.one_hot(labels, 8) + 0.7 * F.one_hot(others, 8).double()
    expected = 0.3 * F.cross_entropy(outputs, labels) + 0.7 * F.cross_entropy(outputs, others)
    torch.testing.assert_close(task.loss(outputs, soft), expected)


def test_images_to_images_are_mirrored_together():
    small, large = Augmented(SuperResolution(side=8), mirror=True).batch(20, generator())
    torch.testing.assert_close(halved(large), small, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "own", "sentence"),
    [
        (ShapeClasses(), {"shift": -1}, "shift is -1"),
        (ShapeClasses(), {"mixup": 2.0}, "mixup is 2.0"),
        (SuperResolution(), {"mixup": 0.2}, "has no classes to mix"),
        (ShapeMasks(), {"shift": 2}, r"targets of masks of shapes are \[32, 32\] each"),
    ],
)
def test_bad_input(task, own, sentence):
    with pytest.raises(ValueError, match=sentence):
        Augmented(task, **own).batch(2, generator())
