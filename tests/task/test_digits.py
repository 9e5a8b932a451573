"""Digits: the split, the three readings."""

import importlib.util
import math

import pytest
import torch

from regardant.task import digits
from regardant.task.digits import DigitPixels, DigitRows, NoisyDigits, read_digits

pytest.importorskip("sklearn")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_image_is_on_one_side():
    train, validation = read_digits()
    assert len(train.labels) == 1348 and len(validation.labels) == 449
    assert train.images.min() == 0 and train.images.max() == 16
    seen = {tuple(image.flatten().tolist()) for image in train.images}
    assert not seen & {tuple(image.flatten().tolist()) for image in validation.images}


def test_noise_is_as_strong_as_asked_and_drawn_from_the_generator():
    silent, labels = NoisyDigits(noise=0.0).batch(512, generator())
    noisy, same = NoisyDigits(noise=0.5).batch(512, generator())
    assert torch.equal(labels, same) and silent.shape == (512, 1, 16, 16)
    assert abs((noisy - silent).std() - 0.5) < 0.01
    assert torch.equal(silent[..., ::2, ::2], silent[..., 1::2, 1::2])
    once, again = ([x for x, _ in NoisyDigits().validation()] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, again))


def test_rows_are_the_images_top_to_bottom():
    rows, labels = DigitRows().batch(16, generator(1))
    train = read_digits()[0]
    whole = {
        tuple(image.flatten().tolist()): label for image, label in zip(train.images, train.labels.tolist())
    }
    for row, label in zip(rows, labels.tolist()):
        assert whole[tuple((16 * row).round().long().flatten().tolist())] == label


def test_pixels_are_scored_in_bits():
    task = DigitPixels()
    images, targets = task.batch(4, generator())
    assert torch.equal(images, targets)
    total, count = task.metric(torch.zeros(4, 8, 8, 17), targets)
    assert count == 4 * 64
    assert math.isclose(total / count, math.log2(17), rel_tol=1e-5)


def test_without_scikit_learn_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    read_digits.cache_clear()
    with pytest.raises(ValueError, match=r"pip install regardant\[task\]"):
        DigitRows().batch(1, generator())
    monkeypatch.setattr(digits, "find_spec", importlib.util.find_spec)
    read_digits.cache_clear()
