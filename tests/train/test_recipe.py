"""Recipes: one call trains any network on images, the same way twice, and goes on where it was killed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from regardant.task.digits import NoisyDigits
from regardant.task.shape_classes import ShapeClasses
from regardant.train.augment import Augmented
from regardant.train.fit import evaluate, fit, seeded
from regardant.train.recipe import DIGITS, FEW_SHAPES, SHAPES


def network(channels=1, classes=10):
    """Other people's network: it knows nothing of records."""
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(128, classes),
        )  # fmt: skip


def test_digits_are_learnt_by_a_plain_network():
    pytest.importorskip("sklearn")
    task, model = NoisyDigits(scale=1, noise=0.2), network()
    replace(DIGITS, steps=120).fit(model, task, seed=0)
    assert evaluate(model, task) > 0.7


def test_a_recipe_augments_what_it_says_and_no_more():
    task = ShapeClasses()
    assert SHAPES.on(task) is task
    assert FEW_SHAPES.on(task) == Augmented(task, shift=2, erase=0.25)


def test_a_killed_training_goes_on_to_the_same_end(tmp_path):
    pytest.importorskip("safetensors")
    recipe, task = replace(FEW_SHAPES, steps=6, batch=8, mixup=0.4), ShapeClasses(side=16)
    whole = network(3, 8)
    recipe.fit(whole, task, seed=1)

    class Killed(Exception):
        pass

    def kill(done, of, loss):
        if done == 4:
            raise Killed

    arguments = dict(steps=6, batch=8, learning_rate=recipe.learning_rate, seed=1)
    path = tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        fit(network(3, 8), recipe.on(task), **arguments, checkpoint=path, checkpoint_every=2, progress=kill)
    resumed = network(3, 8)
    recipe.fit(resumed, task, seed=1, checkpoint=path)
    for ours, theirs in zip(resumed.state_dict().values(), whole.state_dict().values()):
        assert torch.equal(ours, theirs)
