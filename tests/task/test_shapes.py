"""Scenes of coloured shapes: what is drawn is what the labels say."""

import math
from dataclasses import replace

import pytest
import torch

from regardant.task.shapes import COLOURS, KINDS, coverage, draw_objects, paint, relations


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one(kind, *, side=64, radius=0.25, angle=0.0, **own):
    """One shape in the middle, red, over an even ground."""
    objects = draw_objects(1, count=1, radius=(radius, radius), generator=generator())
    objects = replace(
        objects, kind=torch.tensor([[list(KINDS).index(kind)]]), colour=torch.tensor([[0]]),
        centre=torch.tensor([[[0.5, 0.5]]]), angle=torch.tensor([[angle]]), **own,
    )  # fmt: skip
    return paint(objects, side, noise=0.0, clutter=0.0, generator=generator())


# Areas in squared radii, from the outlines' own sizes.
AREAS = {
    "disc": math.pi * 0.95**2,
    "square": 1.4**2,
    "triangle": 3 * 3**0.5 / 4,
    "cross": 2 * 1.9 * 0.6 - 0.6**2,
    "bar": 1.9 * 0.6,
    "ring": math.pi * (0.97**2 - 0.47**2),
    "ell": 0.5 * 1.5 + 1.3 * 0.5 - 0.5 * 0.5,
}


@pytest.mark.parametrize("kind", AREAS)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_shapes_have_the_areas_of_their_outlines(kind, angle):
    pixels = one(kind, angle=angle, side=200).owner.sum().item()
    assert pixels / (200 * 0.25) ** 2 == pytest.approx(AREAS[kind], rel=0.03)


def test_a_shape_has_its_colour_and_the_ground_is_grey():
    scene = one("square")
    inside = scene.images[0, :, 32, 32]
    torch.testing.assert_close(inside, torch.tensor(COLOURS["red"]))
    torch.testing.assert_close(scene.images[0, :, 2, 2], torch.full((3,), 0.3))


def test_an_angle_turns_right_to_down():
    """A bar turned by a quarter stands; an ell's foot is at the lower right and goes to the lower left."""
    lying, standing = one("bar").masks[0, 0], one("bar", angle=math.pi / 2).masks[0, 0]
    assert torch.equal(lying.T, standing)
    ell, turned = one("ell").masks[0, 0], one("ell", angle=math.pi / 2).masks[0, 0]
    assert torch.equal(turned, ell.rot90(-1))


def test_textures_darken_every_second_line():
    for texture, axes in ((1, (0,)), (2, (1,)), (3, (0, 1))):
        image = one("square", side=32, texture=torch.tensor([[texture]])).images[0, 0, 12:20, 12:20]
        at = torch.arange(12, 20)
        lines = {0: at[:, None] // 2, 1: at[None, :] // 2}
        dark = sum(lines[axis].expand(8, 8) for axis in axes) % 2
        torch.testing.assert_close(image, 0.9 * torch.where(dark == 1, 0.35, 1.0))


def test_the_nearest_object_owns_a_pixel_and_boxes_hold_what_is_seen():
    objects = draw_objects(20, count=6, radius=(0.1, 0.3), generator=generator())
    scene = paint(objects, 48, generator=generator())
    alone = coverage(objects, (48, 48)) > 0.5
    rank = torch.arange(1, 7).view(1, 6, 1, 1)
    assert torch.equal(scene.owner, (rank * alone).amax(dim=1))
    assert torch.equal(scene.masks, scene.owner[:, None] == rank)
    for masks, boxes in zip(scene.masks, scene.boxes):
        for mask, box in zip(masks, boxes):
            rows, columns = mask.nonzero(as_tuple=True)
            expected = (
                [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1] if len(rows) else [0] * 4
            )
            assert box.tolist() == [int(edge) for edge in expected]


def test_kinds_are_those_of_the_owners():
    scene = paint(draw_objects(5, count=4, generator=generator()), 32, generator=generator())
    for at, y, x in [(0, 3, 3), (1, 10, 20), (4, 25, 8), (2, 16, 16)]:
        owner = scene.owner[at, y, x]
        kind = 0 if owner == 0 else 1 + scene.objects.kind[at, owner - 1]
        assert scene.kinds[at, y, x] == kind
    assert scene.kinds.max() > 0


def test_on_a_board_nothing_touches_and_all_is_inside():
    objects = draw_objects(200, count=9, board=3, radius=(0.1, 1 / 6), generator=generator())
    covers = coverage(objects, (48, 48)) > 0.5
    assert covers.sum(dim=1).max() == 1
    low, high = objects.centre - objects.radius[..., None], objects.centre + objects.radius[..., None]
    assert low.min() >= -1e-6 and high.max() <= 1 + 1e-6
    cells = (objects.centre * 3).long()
    taken = (3 * cells[..., 0] + cells[..., 1]).sort(dim=1).values
    assert torch.equal(taken, torch.arange(9).expand(200, 9))


def test_as_many_are_there_as_asked_for_and_only_they_are_painted():
    objects = draw_objects(400, count=5, fewest=2, generator=generator())
    counts = objects.there.sum(dim=1)
    assert counts.unique().tolist() == [2, 3, 4, 5]
    assert not (coverage(objects, (32, 32)) * ~objects.there[..., None, None]).any()


def test_one_scene_at_two_resolutions():
    small, large = (
        paint(draw_objects(8, count=3, generator=random), side, noise=0.0, generator=random)
        for side, random in ((32, generator()), (64, generator()))
    )
    assert torch.equal(small.objects.centre, large.objects.centre)
    shrunk = torch.nn.functional.avg_pool2d(large.images, 2)
    assert (shrunk - small.images).abs().mean() < 0.01


def test_relations_follow_from_places_sizes_and_depth():
    objects = draw_objects(3, count=3, generator=generator())
    objects = replace(
        objects,
        centre=torch.tensor([[0.2, 0.3], [0.5, 0.1], [0.9, 0.8]]).expand(3, 3, 2),
        radius=torch.tensor([0.1, 0.2, 0.15]).expand(3, 3),
        colour=torch.tensor([1, 2, 1]).expand(3, 3),
        there=torch.tensor([[True, True, True], [True, True, False], [True, False, True]]),
    )
    found = relations(objects)
    assert found["left of"][0].nonzero().tolist() == [[0, 2], [1, 0], [1, 2]]
    assert found["above"][0].nonzero().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found["larger than"][0].nonzero().tolist() == [[1, 0], [1, 2], [2, 0]]
    assert found["in front of"][0].nonzero().tolist() == [[1, 0], [2, 0], [2, 1]]
    assert found["of the colour of"][0].nonzero().tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [2, 2]]
    assert found["left of"][1].nonzero().tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": 10, "board": 3}, "holds 9 objects"),
        ({"board": 4}, r"radius is up to .* hold radii up to 0.125"),
        ({"kinds": 9}, "kinds is 9, but there are 1 to 8"),
        ({"radius": (0.3, 0.2)}, "radius is"),
        ({"fewest": 4}, "fewest is 4"),
    ],
)
def test_bad_input_is_one_sentence(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw_objects(4, **{"count": 3, "generator": generator()} | own)
