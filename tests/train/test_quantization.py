"""Simulated rounding, and the outliers that it suffers from."""

import pytest
import torch
from torch import nn

from regardant.train.quantization import (
    RUNNING,
    Ranges,
    outliers,
    quantized,
    rounded,
    rounded_symmetrically,
)


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


def test_a_running_range_forgets_and_a_whole_one_does_not():
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 1.0]), torch.tensor([0.0, 4.0])]
    running = whole = None
    for batch in batches:
        running, whole = RUNNING.seen(batch, running), Ranges().seen(batch, whole)
    assert whole == (-3.0, 4.0)
    low = 0.9 * (0.9 * -1 + 0.1 * -3) + 0.1 * 0
    high = 0.9 * (0.9 * 2 + 0.1 * 1) + 0.1 * 4
    assert running == pytest.approx((low, high))


def test_a_percentile_leaves_outliers_outside():
    x = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    x[5000] = 500.0
    low, high = Ranges(percentile=99.9).seen(x, None)
    assert (low, high) == pytest.approx((0.001, 0.9991), abs=1e-4)
    assert Ranges(percentile=75.0).seen(torch.tensor([3.0, 1.0, 2.0]), None) == pytest.approx((1.5, 2.5))


def test_an_outlier_costs_the_others_their_bits_unless_it_is_cut_off():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False)).double()
    x = torch.randn(400, 8, dtype=torch.float64)
    spiked = x.clone()
    spiked[0, 0] = 1000.0
    plain, errors = model(x), {}
    for name, ranges in (("all", Ranges()), ("most", Ranges(percentile=99.9))):
        with quantized(model, [spiked], bits=8, ranges=ranges):
            errors[name] = (model(x) - plain).abs().mean().item()
    assert errors["most"] < 0.05 * errors["all"]


def test_outputs_are_rounded_when_asked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 50)).double()
    x = torch.randn(64, 6, dtype=torch.float64)
    with quantized(model, [x], bits=3, outputs=True):
        assert len(model(x).unique()) <= 8
    with quantized(model, [x], bits=3):
        assert len(model(x).unique()) > 8
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_the_worst_layer_is_told_apart():
    model = nn.Sequential(nn.Identity(), nn.Identity())
    model[1].register_forward_pre_hook(lambda _, inputs: (10 * inputs[0],))
    seen = outliers(model, model, [torch.tensor([[1.0, -2.0], [3.0, 0.5]])])
    assert seen.worst == pytest.approx(25.0) and seen.largest == pytest.approx((2.5 + 25) / 2)


@pytest.mark.parametrize("own", [{"percentile": 40.0}, {"percentile": 101.0}, {"momentum": 1.0}])
def test_bad_ranges_are_one_sentence(own):
    with pytest.raises(ValueError, match=f"{next(iter(own))} is"):
        Ranges(**own)
