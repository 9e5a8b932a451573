"""Gaussian adaptive attention: weights by hand, and the dossier's pitfalls."""

import math

import pytest
import torch

from regardant.core.gaussian_weights import gaussian_weights, importance_factor
from regardant.gate.gaussian_adaptive_attention import GaussianAdaptiveAttention


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("combine", ["product", "sum"])
def test_weights_by_hand(combine):
    x, offsets, widths = [0.3, -1.2, 2.0, 0.9], [0.4, -0.1], [0.8, 1.5]
    mean = sum(x) / 4
    deviation = math.sqrt(sum((each - mean) ** 2 for each in x) / 3 + 1e-8)
    mixture = []
    for each in x:
        densities = [
            math.exp(-(((each - mean - offset) / deviation) ** 2) / (2 * width**2))
            / math.sqrt(2 * math.pi * width**2)
            for offset, width in zip(offsets, widths)
        ]
        mixture.append(math.prod(densities) if combine == "product" else sum(densities))
    found = gaussian_weights(
        *(torch.tensor(each, dtype=torch.float64) for each in (x, offsets, widths)), axis=0, combine=combine
    )
    assert found.tolist() == pytest.approx([each / sum(mixture) for each in mixture], abs=1e-12)


@torch.no_grad()
def test_the_last_run_takes_what_is_left_and_each_run_sums_to_one():
    gate, x = GaussianAdaptiveAttention(14, runs=4).double(), maps(2, 14, 3, 5)
    assert gate.sizes == [3, 3, 3, 5]
    weights = gate.weights(x)
    for part in weights.split(gate.sizes, dim=1):
        torch.testing.assert_close(part.sum(1), torch.ones(2, 3, 5, dtype=torch.float64))
    torch.testing.assert_close(gate(x), x * weights, rtol=0, atol=0)


@torch.no_grad()
def test_a_product_of_gaussians_is_one_gaussian():
    """Whose precision is the sum, and whose offset is the mean weighted by precision."""
    x, offsets, widths = maps(2, 9, 2, 2), maps(3, seed=1), maps(3, seed=2).exp()
    precision = widths**-2
    one = (precision * offsets).sum(0, keepdim=True) / precision.sum(), precision.sum(0, keepdim=True) ** -0.5
    torch.testing.assert_close(
        gaussian_weights(x, offsets, widths, axis=1), gaussian_weights(x, *one, axis=1), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("combine", ["product", "sum"])
@pytest.mark.parametrize("width", [0.0, 1e-9, 1e-4])
def test_pitfall_a_width_near_zero_gives_a_spike_and_finite_gradients(combine, width):
    gate, x = GaussianAdaptiveAttention(8, runs=2, combine=combine), maps(2, 8, 3, 3).float()
    torch.nn.init.constant_(gate.widths, width)
    y = gate(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert gate.widths.grad.isfinite().all() and gate.offsets.grad.isfinite().all()


def test_pitfall_a_product_of_many_gaussians_does_not_vanish():
    gate, x = GaussianAdaptiveAttention(8, runs=1, gaussians=400), maps(2, 8, 1, 1).float()
    torch.nn.init.constant_(gate.widths, 0.3)
    weights = gate.weights(x)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 1, 1))
    weights.square().sum().backward()
    assert gate.offsets.grad.isfinite().all() and gate.offsets.grad.abs().max() > 0


@torch.no_grad()
def test_pitfall_the_axis_is_that_of_the_channels_not_of_the_batch():
    gate, x = GaussianAdaptiveAttention(8).double(), maps(3, 8, 2, 2)
    changed = x.clone()
    changed[1] *= 5
    torch.testing.assert_close(gate(x)[[0, 2]], gate(changed)[[0, 2]], rtol=0, atol=0)
    changed = x.clone()
    changed[:, :, 0, 1] *= 5  # nor is it that of the positions
    torch.testing.assert_close(gate(x)[:, :, 1], gate(changed)[:, :, 1], rtol=0, atol=0)


@torch.no_grad()
def test_pitfall_a_single_entry_has_no_variance_and_gets_all_the_weight():
    x = torch.tensor([[3.0], [-2.0]])
    found = gaussian_weights(x, torch.ones(2), torch.ones(2), axis=1)
    assert found.tolist() == [[1.0], [1.0]]
    with pytest.raises(ValueError, match="fewer than 2 channels"):
        GaussianAdaptiveAttention(7, runs=4)


@torch.no_grad()
def test_the_importance_factor_ranks_channels_from_zero_to_one():
    gate, x = GaussianAdaptiveAttention(6, runs=1, gaussians=1).double(), maps(200, 6, 1, 1)
    x[:, 4] += 4.0
    gate.offsets.fill_(5.0)
    gate.widths.fill_(1.0)
    found = gate.importance(x)
    assert found.argmax() == 4 and found[4] == 1 and found.min() == 0
    weights = torch.tensor([[0.1, 0.4], [0.3, 0.8]])
    assert importance_factor(weights).tolist() == [0, 1]
    assert importance_factor(torch.ones(3, 2)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("own", "words"),
    [({"runs": 0}, "runs is 0"), ({"gaussians": 0}, "gaussians is 0"), ({"combine": "mean"}, "combine is")],
)
def test_bad_input_is_one_sentence(own, words):
    with pytest.raises(ValueError, match=words):
        GaussianAdaptiveAttention(16, **own)
