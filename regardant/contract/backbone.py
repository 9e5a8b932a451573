"""What backbones are held to beside what networks are: features, sizes, fields, variants, fusion."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from regardant.atlas import catalog
from regardant.backbone.kit.backbone import Backbone
from regardant.contract.network import TOLERANCE, Examples, run
from regardant.contract.parts import hold_equal
from regardant.contract.report import Broken, Skip
from regardant.contract.subject import blame
from regardant.contract.wrong_input import hold_to_one_sentence
from regardant.core.network import Example

SIZES = ((7, 13), (1, 1), (33, 64))
"""Images that every backbone is tried at, whichever of them it takes."""

DRAWS = 32
"""How many images are tried until one shows that a pixel is seen: rectifiers and largest ones hide some."""


def _built(examples: Examples, **config) -> Iterator[tuple[int, Example, Backbone]]:
    """Each small configuration that gives features, with an image that it takes."""
    generator = torch.Generator().manual_seed(examples.seed)
    if not examples.network.small:
        raise Broken("small is empty, but the suite needs at least one configuration to try")
    for number, small in enumerate(examples.network.small):
        example = Example(
            dict(small) | {"features_only": True} | config, (torch.zeros(1, dtype=torch.float64),)
        )
        network = examples.build(number, example)
        side = max(network.strides)
        channels = network.image_channels
        image = torch.randn(2, channels, side + 1, 2 * side, generator=generator, dtype=torch.float64)
        yield number, Example(example.config, (image,)), network


def _images(network: Backbone, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (1, network.image_channels, height, width)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def _taken(network: Backbone) -> Iterator[tuple[int, int]]:
    """Sizes that the backbone takes: those of `SIZES`, and just its largest stride."""
    side = max(network.strides)
    for height, width in (*SIZES, (side, 2 * side + 1)):
        if min(height, width) >= side:
            yield height, width


def features(examples: Examples) -> str:
    """The maps have the channels that are declared, and ⌈side / stride⌉ positions a side, at any size."""
    tried = 0
    for _, _, network in _built(examples):
        for height, width in _taken(network):
            with torch.no_grad(), blame("forward"):
                maps = network(_images(network, height, width, tried))
            if not isinstance(maps, list) or len(maps) != len(network.strides):
                raise Broken(
                    f"features_only gives {_spell(maps)}, but {len(network.strides)} maps are declared"
                )
            for level, (each, stride, channels) in enumerate(zip(maps, network.strides, network.channels)):
                wanted = (1, channels, -(-height // stride), -(-width // stride))
                if tuple(each.shape) != wanted:
                    raise Broken(
                        f"map {level} of an image of {height}×{width} is {tuple(each.shape)}, but with "
                        f"{channels} channels and a stride of {stride} it is {wanted}"
                    )
            tried += 1
    return f"strides and channels are as declared for {tried} images"


def _spell(found: object) -> str:
    return f"{len(found)} maps" if isinstance(found, list) else f"a {type(found).__name__}"


def sizes(examples: Examples) -> str:
    """Images of odd sizes are taken, and those smaller than the stride refused in one sentence."""
    taken = refused = 0
    for _, _, network in _built(examples):
        side = max(network.strides)
        for height, width in (*SIZES, (side - 1, side), (side, side - 1)):
            if min(height, width) < 1:
                continue
            image = _images(network, height, width, taken)
            if min(height, width) < side:
                refused += 1
                attempt = (f"an image of {height}×{width} with a stride of {side}", partial(network, image))
                hold_to_one_sentence(attempt, accepted=False)
                continue
            with torch.no_grad(), blame(f"forward of an image of {height}×{width}"):
                network(image)
            taken += 1
    return f"{taken} odd sizes were taken, and {refused} that are smaller than the stride refused"


def receptive_field(examples: Examples) -> str:
    """No position of a map sees a pixel that its declared field does not hold."""
    probed = 0
    for network, size, level, position, declared in _places(examples):
        seen = _seen(network, size, level, position, seed=0)
        if (strange := seen & ~declared).any():
            raise Broken(_said(size, level, position, strange, "sees", "which its field does not hold"))
        probed += 1
    return f"nothing was seen outside the declared field at {probed} positions"


def reach(examples: Examples) -> str:
    """Every position of a map sees all of its declared field."""
    probed = 0
    for network, size, level, position, declared in _places(examples):
        seen = torch.zeros_like(declared)
        for seed in range(DRAWS):
            seen = seen | _seen(network, size, level, position, seed=seed)
            if not (declared & ~seen).any():
                break
        if (blind := declared & ~seen).any():
            raise Broken(_said(size, level, position, blind, "does not see", "which its field holds"))
        probed += 1
    return f"all of the declared field was seen at {probed} positions"


def _places(examples: Examples) -> Iterator[tuple[Backbone, tuple[int, int], int, int, Tensor]]:
    """Network, size of the image, level, position, and the pixels that its declared field holds."""
    for _, _, network in _built(examples):
        for size in _taken(network):
            with blame("fields"):
                fields = network.fields(*size)
            if len(fields) != len(network.strides):
                raise Broken(
                    f"fields gives {len(fields)} of them, but {len(network.strides)} maps are declared"
                )
            for level, field in enumerate(fields):
                count = prod(field.after)
                for position in sorted({0, field.after[1] - 1, count // 2, count - 1}):
                    yield network, size, level, position, field.relation[position]


def _seen(network: Backbone, size: tuple[int, int], level: int, position: int, *, seed: int) -> Tensor:
    image = _images(network, *size, seed).requires_grad_()
    with blame("forward"):
        found = network(image)[level].flatten(2)[0, :, position]
    direction = torch.randn(len(found), generator=torch.Generator().manual_seed(3 + seed), dtype=found.dtype)
    (gradient,) = torch.autograd.grad((found * direction).sum(), image)
    return gradient[0].abs().amax(0).flatten() > 0


def _said(size: tuple[int, int], level: int, position: int, which: Tensor, verb: str, why: str) -> str:
    at = int(which.nonzero().flatten()[0])
    return (
        f"receptive field: position {position} of map {level} {verb} pixel {divmod(at, size[1])} of an "
        f"image of {size[0]}×{size[1]}, {why} ({int(which.sum())} such pixels)"
    )


def variants(examples: Examples) -> str:
    """Every named variant can be made, under the names that its card has."""
    maker = examples.network
    for name in maker.variants:
        with torch.device("meta"), blame(f"variant {name}"):
            made = maker(**(maker.variant(name) | {"classes": 7}))
        if not isinstance(made, Backbone):
            raise Broken(f"variant {name} is a {type(made).__name__}")
    on_card = {
        name
        for name, system in catalog.variants().items()
        if system.target == f"{maker.__module__}:{maker.__qualname__}"
    }
    registered = any(
        system.target == f"{maker.__module__}:{maker.__qualname__}" for system in catalog.systems().values()
    )
    if registered and on_card != set(maker.variants):
        odd = ", ".join(sorted(on_card ^ set(maker.variants)))
        raise Broken(f"the class and its card differ in which variants there are: {odd}")
    if not maker.variants:
        raise Skip("it names no variants")
    return f"{len(maker.variants)} variants can be made: {', '.join(maker.variants)}"


def fused(examples: Examples) -> str:
    """Fused, it does what it did before."""
    worst = 0.0
    for number, example, network in _built(examples):
        _with_statistics(network, number)
        with torch.no_grad():
            before = run(network, example)
            with blame("fuse"):
                network.fuse()
            worst = max(
                worst, hold_equal(run(network, example), before, TOLERANCE, "fuse changed the output")
            )
    return f"fused, it gives the same within {worst:.1e}"


def _with_statistics(network: nn.Module, seed: int) -> None:
    """Batch norms with statistics of their own: at 0 and 1, folding them would change nothing."""
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.3)
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)


def checkpoint(examples: Examples) -> str:
    """A checkpoint of something else is refused in one sentence."""
    if not examples.network.official:
        raise Skip("no names of released weights are declared")
    tried = 0
    for _, _, network in _built(examples):
        for state in ({}, {"another.weight": torch.zeros(3)}):
            tried += 1
            attempt = ("a checkpoint of something else", partial(network.load_official, state))
            hold_to_one_sentence(attempt, accepted=False)
    return f"{tried} checkpoints of something else were refused"
