"""Simulated rounding, and the outliers that it suffers from."""

import pytest
import torch
from torch import nn

from regardant.train.quantization import outliers, quantized, rounded, rounded_symmetrically


def test_the_grid_has_so_many_levels_and_zero_among_them():
    x = torch.linspace(-1, 3, 1001, dtype=torch.float64)
    grid = rounded(x, -1, 3, 4).unique()
    assert len(grid) == 16 and (grid == 0).any()
    assert (rounded(x, -1, 3, 4) - x).abs().max() <= (4 / 15) / 2 + 4 / 15 / 2 + 1e-12
    assert rounded(torch.tensor([9.0, -9.0]), -1, 3, 8).tolist() == pytest.approx([3, -1], abs=4 / 255)


def test_symmetric_rounding_keeps_the_largest_and_errs_by_half_a_step():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = x.abs().max() / 127
    assert (rounded_symmetrically(x, 8) - x).abs().max() <= step / 2 + 1e-12
    assert rounded_symmetrically(x, 8).abs().max() == pytest.approx(x.abs().max().item())
    assert torch.equal(rounded_symmetrically(torch.zeros(3), 8), torch.zeros(3))


def test_a_model_is_rounded_inside_and_itself_again_outside():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(32, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model(x)
    errors = []
    for bits in (4, 8, 12):
        with quantized(model, [x], bits=bits):
            errors.append((model(x) - plain).abs().max().item())
    assert errors[0] > errors[1] > errors[2] > 0
    with quantized(model, [x], bits=2, keep=[model[0], model[2]]):
        assert torch.equal(model(x), plain)
    with pytest.raises(RuntimeError), quantized(model, [x], bits=4):
        raise RuntimeError
    assert torch.equal(model(x), plain)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_outliers_of_known_distributions():
    x = torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    model = nn.Identity()
    seen = outliers(model, [model], [x])
    assert abs(seen.kurtosis - 3) < 0.1 and 3.5 < seen.largest < 5.5
    x[:, 0] = 500.0
    spiked = outliers(model, [model], [x])
    assert spiked.largest == 500 and spiked.kurtosis > 1000


def test_watching_nothing_is_said():
    with pytest.raises(ValueError, match="nothing was watched"):
        outliers(nn.Identity(), [], [torch.zeros(1, 2)])
