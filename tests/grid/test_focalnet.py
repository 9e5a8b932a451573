"""Focal modulation: a case by hand, and the dossier's pitfalls."""

import pytest
import torch
from torch.nn import functional as F

from regardant.core.operations import flops
from regardant.core.record import Record
from regardant.grid.focalnet import FocalModulation


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def made(dim=4, **options):
    torch.manual_seed(0)
    return FocalModulation(dim, **options).double()


def opened(layer):
    """With the last two projections out of the way: y is the query times the sum of the levels."""
    for part in (layer.to_modulator, layer.to_out):
        part.weight.copy_(torch.eye(layer.dim))
        part.bias.zero_()
    return layer


@torch.no_grad()
def test_pitfall_each_level_is_made_of_the_one_before():
    layer, x = opened(made(levels=3)), maps(1, 9, 8, 4)
    q, context, gates = layer.parts(x)
    total = 0
    for level, convolution in enumerate(layer.contexts):
        assert convolution.kernel_size == (3 + 2 * level,) * 2
        context = F.gelu(convolution(context.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        total = total + gates[..., level, None] * context
    # The last level's mean over the map, and the GELU after it.
    total = total + gates[..., 3:] * F.gelu(context.mean(dim=(1, 2), keepdim=True))
    torch.testing.assert_close(layer(x), q * total, rtol=0, atol=1e-12)


@torch.no_grad()
def test_pitfall_gates_come_as_they_are():
    layer, record = made(levels=2), Record()
    x = 3 * maps(1, 5, 6, 4, seed=1)
    layer(x, record=record)
    (gates,) = record.seen["gates"]
    weight, bias = layer.to_parts.weight[8:], layer.to_parts.bias[8:]
    torch.testing.assert_close(gates, x @ weight.mT + bias, rtol=0, atol=1e-12)
    assert gates.min() < 0 and gates.max() > 1


@torch.no_grad()
def test_pitfall_the_global_context_is_the_mean_of_the_last_level_before_its_activation():
    layer, x = opened(made(levels=2)), maps(1, 6, 6, 4)
    with_all = layer(x)
    layer.to_parts.weight[8:10] = 0
    layer.to_parts.bias[8:10] = 0
    q, context, gates = layer.parts(x)
    for convolution in layer.contexts:
        context = F.gelu(convolution(context.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    wanted = q * gates[..., 2:] * F.gelu(context.mean(dim=(1, 2), keepdim=True))
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)
    assert not torch.allclose(with_all, wanted, atol=1e-3)


@torch.no_grad()
def test_pitfall_levels_are_summed_in_float32():
    layer = made(levels=3).bfloat16()
    context, gates = maps(1, 4, 4, 4).bfloat16(), maps(1, 4, 4, 4, seed=1).bfloat16()
    levels = []
    for convolution in layer.contexts:
        context_of = levels[-1] if levels else context
        levels.append(F.gelu(convolution(context_of.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
    levels.append(F.gelu(levels[-1].mean(dim=(1, 2), keepdim=True)).expand_as(context))
    exact = sum(gate[..., None].float() * level.float() for gate, level in zip(gates.unbind(-1), levels))
    assert torch.equal(layer.gathered(context, gates), exact.bfloat16())


def test_pitfall_the_context_has_no_norm_of_its_own():
    assert not any(isinstance(part, torch.nn.LayerNorm) for part in made().modules())
    normed = made(normed=True)
    assert isinstance(normed.norm, torch.nn.LayerNorm)
    # It norms the product, so that the output does not care how large the modulator is.
    x = maps(1, 4, 4, 4)
    before = normed(x)
    with torch.no_grad():
        for each in (normed.to_modulator.weight, normed.to_modulator.bias):
            each.mul_(10)
    torch.testing.assert_close(normed(x), before, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_the_mean_over_levels_is_the_sum_divided():
    layer, averaged = opened(made(levels=2)), opened(made(levels=2, averaged=True))
    x = maps(1, 5, 4, 4)
    torch.testing.assert_close(averaged(x), layer(x) / 3, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_modulator_is_told():
    layer, record, x = made(), Record(), maps(2, 5, 4, 4)
    y = layer(x, record=record)
    (modulator,) = record.seen["modulator"]
    torch.testing.assert_close(y, layer.to_out(layer.parts(x)[0] * modulator), rtol=0, atol=1e-12)
    quiet = Record(noting=False)
    layer(x, record=quiet)
    assert not quiet.seen


@torch.no_grad()
def test_work_is_linear_in_the_positions():
    dim, layer = 16, FocalModulation(16, levels=3)
    layer(torch.zeros(1, 1, 1, dim))  # the first call in a type makes sure that it can be computed in
    for side in (8, 32):
        # Two projections and two more, and the taps of 3², 5² and 7².
        each = 4 * dim**2 + dim * 4 + dim * (9 + 25 + 49)
        assert flops(lambda side=side: layer(torch.zeros(1, side, side, dim))) == 2 * side**2 * each


@pytest.mark.parametrize(
    ("options", "said"),
    [(dict(levels=0), "levels is 0"), (dict(window=4), "window is 4, but it is odd"),
     (dict(growth=1), "growth is 1")],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_said_in_a_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        FocalModulation(4, **options)
