"""Spectral gating: a circular convolution, its sizes, and the dossier's pitfalls."""

import copy

import pytest
import torch

from regardant.grid.spectformer import SpectralGate


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def gate(dim, size):
    made = SpectralGate(dim, size=size).double()
    made.weight.data = maps(*made.weight.shape, seed=1)
    return made


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 1), (4, 6), (7, 5), (6, 9)])
def test_it_is_a_circular_convolution_with_the_filters_kernel(size):
    layer, x = gate(2, size), maps(2, *size, 2)
    kernel = torch.fft.irfft2(layer.filter(*size), s=size, dim=(0, 1))
    expected = torch.zeros_like(x)
    for i in range(size[0]):
        for j in range(size[1]):
            expected += kernel[i, j] * x.roll((i, j), dims=(1, 2))
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.reference(x), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_pitfall_half_precision_is_transformed_in_float32():
    layer, x = gate(4, (6, 6)).float(), maps(1, 6, 6, 4, dtype=torch.float32)
    half = copy.deepcopy(layer).bfloat16()
    found = half(x.bfloat16())
    assert found.dtype is torch.bfloat16
    rounded = copy.deepcopy(half).float()
    assert torch.equal(found, rounded(x.bfloat16().float()).bfloat16())
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain)


@torch.no_grad()
def test_pitfall_odd_widths_come_back_odd():
    for width in (5, 6, 7):
        layer = gate(3, (4, width))
        assert layer(maps(1, 4, width, 3)).shape == (1, 4, width, 3)


@torch.no_grad()
def test_pitfall_the_left_edge_is_next_to_the_right_one():
    layer, x = gate(1, (4, 8)), maps(1, 4, 8, 1)
    # A kernel of one tap, one step to the right.
    kernel = torch.zeros(4, 8, 1, dtype=torch.float64)
    kernel[0, 1] = 1.0
    layer.weight.data = torch.view_as_real(torch.fft.rfft2(kernel, dim=(0, 1))).contiguous()
    torch.testing.assert_close(layer(x), x.roll(1, dims=2))
    assert torch.allclose(layer(x)[0, :, 0], x[0, :, -1])


@torch.no_grad()
def test_pitfall_a_filter_of_ones_changes_nothing():
    """Both ways are orthonormal: no factor of the number of positions is left over."""
    layer, x = gate(2, (6, 7)), maps(2, 6, 7, 2)
    layer.weight.data[..., 0], layer.weight.data[..., 1] = 1.0, 0.0
    torch.testing.assert_close(layer(x), x)
    torch.testing.assert_close(layer(maps(1, 9, 12, 2)), maps(1, 9, 12, 2))


@torch.no_grad()
def test_pitfall_imaginary_parts_of_frequencies_that_are_their_own_conjugates_are_not_heard():
    layer, x = gate(1, (4, 6)), maps(1, 4, 6, 1)
    before = layer(x)
    for row in (0, 2):
        for column in (0, 3):
            layer.weight.data[row, column, 0, 1] += 1.0
    torch.testing.assert_close(layer(x), before)
    layer.weight.data[1, 1, 0, 1] += 1.0
    assert not torch.allclose(layer(x), before)


@torch.no_grad()
def test_a_filter_is_interpolated_for_other_sizes():
    layer = gate(2, (8, 8))
    assert layer.filter(8, 8).shape == (8, 5, 2) and layer.filter(12, 7).shape == (12, 4, 2)
    # A filter that is the same at all frequencies stays so.
    layer.weight.data[:] = torch.tensor([0.5, 0.0])
    torch.testing.assert_close(layer(maps(1, 5, 11, 2)), 0.5 * maps(1, 5, 11, 2))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SpectralGate(0), "dim is 0"),
        (lambda: SpectralGate(4, size=(1, 2, 3)), "size is"),
        (lambda: SpectralGate(4, size=0), "size is"),
        (lambda: SpectralGate(4)(torch.zeros(1, 3, 3, 5)), "5"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
