"""Tasks on coloured shapes: the answer is the one that their scenes give."""

from dataclasses import replace

import pytest
import torch

from regardant.task.corruption import CORRUPTIONS, Corrupted, occlude
from regardant.task.far_reference import RING, CuedRow, FarReference
from regardant.task.few_examples import FewExamples
from regardant.task.score import certain
from regardant.task.shape_classes import SameOrDifferent, ShapeClasses, ShapeMasks, TextureAndLayout


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestShapeClasses:
    @pytest.mark.parametrize(("asked", "classes"), [("kind", 8), ("texture", 4), ("kind and colour", 64)])
    def test_label_is_what_is_asked(self, asked, classes):
        task = ShapeClasses(asked=asked)
        objects, labels = task.objects(64, generator())
        assert task.classes == classes and labels.max() < classes
        both = 8 * objects.kind + objects.colour
        expected = {"kind": objects.kind, "texture": objects.texture, "kind and colour": both}[asked]
        assert torch.equal(labels, expected[:, 0])

    def test_at_another_resolution_validation_has_the_same_scenes(self):
        task = ShapeClasses(held_out=32, noise=0.0)
        (small, labels), (large, same) = (next(iter(each.validation())) for each in (task, task.at(64)))
        assert large.shape == (32, 3, 64, 64) and torch.equal(labels, same)
        assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 0.01

    def test_unknown_question(self):
        with pytest.raises(ValueError, match="no asked is called 'king'; the nearest are kind"):
            ShapeClasses(asked="king").batch(1, generator())


def test_masks_say_the_kinds_and_a_perfect_overlap_is_one():
    task = ShapeMasks()
    images, kinds = task.batch(8, generator())
    assert images.shape == (8, 3, 32, 32) and kinds.shape == (8, 32, 32)
    inside, union = task.metric(task.perfect(images, kinds), kinds)
    assert torch.equal(inside, union) and union.sum() == kinds.numel()
    inside, union = task.metric(certain(torch.zeros_like(kinds), 9), kinds)
    assert inside[1:].sum() == 0 and union[0] == kinds.numel()


def test_texture_and_layout_are_read_off_the_scene():
    objects, labels = TextureAndLayout().objects(200, generator())
    down, right = (objects.centre[:, 0] - objects.centre[:, 1]).unbind(-1)
    layout = (torch.atan2(down, right) / (torch.pi / 4)).round().long() % 4
    assert torch.equal(labels, 4 * objects.texture[:, 0] + layout)
    assert torch.equal(objects.texture[:, 0], objects.texture[:, 1])
    edge = objects.radius[..., None]
    assert (objects.centre - edge).min() >= 0 and (objects.centre + edge).max() <= 1
    assert labels.unique().tolist() == list(range(16))


@pytest.mark.parametrize("asked", ["kind", "colour", "texture"])
def test_pairs_are_alike_in_what_is_asked_half_of_the_time(asked):
    objects, same = SameOrDifferent(asked=asked, textures=4).objects(2000, generator())
    first, second = getattr(objects, asked).unbind(1)
    assert torch.equal((first == second).long(), same)
    assert abs(same.double().mean() - 0.5) < 0.04
    other = "colour" if asked == "kind" else "kind"
    alike = getattr(objects, other)[:, 0] == getattr(objects, other)[:, 1]
    assert abs(alike[same == 1].double().mean() - alike[same == 0].double().mean()) < 0.05


class TestFarReference:
    @pytest.mark.parametrize("asked", ["kind", "texture"])
    def test_the_shape_of_the_rings_colour_is_asked_for(self, asked):
        task = FarReference(asked=asked)
        objects, labels = task.objects(300, generator())
        assert (objects.kind[:, 0] == RING).all() and (objects.kind[:, 1:] < 4).all()
        alike = objects.colour[:, 1:] == objects.colour[:, :1]
        assert (alike.sum(dim=1) == 1).all()
        assert torch.equal(getattr(objects, asked)[:, 1:][alike], labels)

    def test_the_ring_lies_in_a_corner_and_all_else_far_from_it(self):
        objects, _ = FarReference().objects(300, generator())
        cells = (objects.centre * 4).long()
        assert ((cells[:, 0] == 0) | (cells[:, 0] == 3)).all()
        assert len(cells[:, 0].unique(dim=0)) == 4
        assert ((cells[:, 1:] - cells[:, :1]).abs().amax(dim=-1) >= 2).all()
        numbers = (4 * cells[..., 0] + cells[..., 1]).sort(dim=1).values
        assert (numbers.diff(dim=1) > 0).all()

    @pytest.mark.parametrize(
        ("own", "sentence"),
        [({"kinds": 8}, "kinds is 8"), ({"apart": 4}, "apart is 4"), ({"count": 9}, "count is 9")],
    )
    def test_bad_input(self, own, sentence):
        with pytest.raises(ValueError, match=sentence):
            FarReference(**own).batch(2, generator())


def test_the_cue_marks_the_row_of_the_label():
    objects, labels = CuedRow().objects(200, generator())
    row = (objects.centre[:, -1, 0] * 4).long()
    assert torch.equal(objects.kind.gather(1, row[:, None])[:, 0], labels)
    assert torch.equal((objects.centre[:, :4, 0] * 4).long(), torch.arange(4).expand(200, 4))
    left = objects.centre[:, :4, 1] - objects.radius[:, :4]
    assert left.min() > objects.centre[0, -1, 1] + objects.radius[0, -1]


class TestCorruption:
    @pytest.mark.parametrize("kind", CORRUPTIONS)
    def test_more_severe_is_farther_off(self, kind):
        images, _ = ShapeClasses(noise=0.0).batch(16, generator())
        off = [
            (CORRUPTIONS[kind](images, severity, generator()) - images).square().mean()
            for severity in (1, 3, 5)
        ]
        assert 0 < off[0] < off[1] < off[2]

    def test_an_even_image_is_not_changed_by_blur_or_lost_contrast(self):
        even = torch.full((2, 3, 9, 7), 0.25)
        for kind in ("blur", "contrast"):
            torch.testing.assert_close(CORRUPTIONS[kind](even, 4, generator()), even)

    def test_occlusion_hides_one_square(self):
        hidden = occlude(torch.zeros(200, 3, 32, 32), 3, generator()) == 0.5
        assert (hidden.sum(dim=(1, 2, 3)) == 3 * 12 * 12).all()
        rows, columns = hidden[:, 0].any(dim=2), hidden[:, 0].any(dim=1)
        assert (rows.sum(dim=1) == 12).all() and (columns.sum(dim=1) == 12).all()
        assert rows.any(dim=0).all() and columns.any(dim=0).all()

    def test_labels_and_score_are_the_tasks_own(self):
        task = ShapeClasses(held_out=64)
        clean, noisy = next(iter(task.validation())), next(iter(Corrupted(task, "noise", 2).validation()))
        assert torch.equal(clean[1], noisy[1])
        assert (noisy[0] - clean[0]).std() == pytest.approx(0.16, rel=0.02)

    @pytest.mark.parametrize(
        ("own", "sentence"),
        [
            ({"kind": "nose"}, "no corruption is called 'nose'; the nearest are noise"),
            ({"severity": 6}, "is 6"),
        ],
    )
    def test_bad_input(self, own, sentence):
        with pytest.raises(ValueError, match=sentence):
            Corrupted(ShapeClasses(), **own)


def test_few_examples_come_again_and_are_drawn_from_the_task():
    task = ShapeClasses(held_out=16)
    few = FewExamples(task, examples=5, seed=3)
    images, labels = few.batch(100, generator())
    assert len(images.flatten(1).unique(dim=0)) == 5
    whole = task.batch(5, generator(3))
    at = [(whole[0] == image).flatten(1).all(dim=1).nonzero().item() for image in images]
    assert torch.equal(whole[1][at], labels)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(few.validation(), task.validation()))
    assert not torch.equal(replace(few, seed=4).batch(8, generator())[0], few.batch(8, generator())[0])
