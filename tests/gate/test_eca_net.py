"""Efficient channel attention: the kernel rule, the convolution along the channels, its equation."""

import pytest
import torch
from torch import nn

from regardant.gate.eca_net import ECA, adaptive_kernel, channel_weights


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def randn(*shape, generator, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize(
    ("channels", "kernel"),
    [(1, 1), (2, 1), (8, 3), (16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_kernel_rule_truncates_and_then_makes_odd_upward(channels, kernel):
    assert adaptive_kernel(channels) == kernel
    assert ECA(channels).kernel == kernel


def test_parameters_of_a_resnet_50():
    """Sixteen gates: 48 parameters with kernel 3, 80 with 5 (the paper's figure), 86 by the rule."""
    stages = {256: 3, 512: 4, 1024: 6, 2048: 3}

    def parameters(kernel):
        gates = [ECA(channels, kernel=kernel) for channels, count in stages.items() for _ in range(count)]
        return sum(parameter.numel() for gate in gates for parameter in gate.parameters())

    assert [parameters(3), parameters(5), parameters(None)] == [48, 80, 86]


def test_no_bias_no_reduction():
    assert [(name, tuple(value.shape)) for name, value in ECA(256).named_parameters()] == [
        ("conv.weight", (1, 1, 5))
    ]


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (33, 64)])
@pytest.mark.parametrize("channels", [1, 5, 64])
def test_forward_is_the_equation(size, channels, generator):
    gate = ECA(channels, kernel=5).double()
    x = randn(2, channels, *size, generator=generator)
    taps, pooled = gate.conv.weight.flatten().tolist(), x.mean((2, 3))
    for sample in range(2):
        for channel in range(channels):
            near = [channel + tap - 2 for tap in range(5)]
            logit = sum(w * pooled[sample, c] for w, c in zip(taps, near) if 0 <= c < channels)
            expected = x[sample, channel] / (1 + torch.exp(torch.tensor(-float(logit))))
            torch.testing.assert_close(gate(x)[sample, channel], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gate(x), gate.reference(x), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_equation(generator):
    gate = ECA(16).double()
    x, far = randn(2, 16, 3, 4, generator=generator), randn(2, 16, 3, 4, generator=generator)
    grads = []
    for run in (gate, gate.reference):
        probe = x.clone().requires_grad_()
        grads.append(torch.autograd.grad((run(probe) * far).sum(), [probe, gate.conv.weight]))
    for fast, plain in zip(*grads):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)


def test_slides_along_channels_and_not_over_samples(generator):
    """The pooled vector is [b, 1, c] to the convolution: samples never meet, far channels neither."""
    gate = ECA(9, kernel=3).double()
    x = randn(2, 9, 4, 4, generator=generator)
    changed = x.clone()
    changed[0, 4] += 1
    moved = (gate.weights(x) != gate.weights(changed)).flatten(1)
    assert moved[0].nonzero().flatten().tolist() == [3, 4, 5]
    assert not moved[1].any()


def test_shift_of_channels_away_from_the_ends(generator):
    """Channels that move along carry their weights along, save where the zeros beyond the ends reach."""
    gate = ECA(32, kernel=5).double()
    x = randn(1, 32, 3, 3, generator=generator)
    moved = gate.weights(x.roll(4, dims=1))
    torch.testing.assert_close(moved[:, 6:30], gate.weights(x)[:, 2:26], rtol=1e-12, atol=1e-12)


def test_zeros_beyond_the_ends_pull_the_outer_channels():
    gate = ECA(6, kernel=3).double()
    nn.init.ones_(gate.conv.weight)
    weights = gate.weights(torch.ones(1, 6, 2, 2, dtype=torch.float64)).flatten()
    inner, outer = torch.tensor(3.0).sigmoid(), torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(weights.float(), torch.stack([outer, *[inner] * 4, outer]))


def test_order_of_channels_matters(generator):
    gate = ECA(8, kernel=3).double()
    x = randn(1, 8, 2, 2, generator=generator)
    back = torch.arange(7, -1, -1)
    assert not torch.allclose(gate.weights(x[:, back])[:, back], gate.weights(x))


def test_channels_last_stays_channels_last(generator):
    gate = ECA(16)
    x = randn(2, 16, 5, 7, generator=generator, dtype=torch.float32)
    y = gate(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, gate(x))


def test_functional_form(generator):
    pooled = randn(3, 10, generator=generator)
    gate = ECA(10, kernel=3).double()
    weights = channel_weights(pooled, gate.conv.weight.flatten())
    torch.testing.assert_close(gate.weights(pooled[:, :, None, None]).flatten(1), weights)


def test_gate_of_zero_logit_halves():
    gate = ECA(4, kernel=1)
    nn.init.zeros_(gate.conv.weight)
    assert (gate(torch.ones(1, 4, 2, 2)) == 0.5).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ECA(0), "channels is 0"),
        (lambda: ECA(8, kernel=4), "kernel is 4, but it is centred"),
        (lambda: ECA(8, kernel=-1), "kernel is -1"),
        (lambda: ECA(8)(torch.zeros(2, 8, 3)), "x has shape"),
        (lambda: ECA(8)(torch.zeros(2, 9, 3, 3)), "x has 9 channels"),
        (lambda: ECA(8)(torch.zeros(2, 8, 3, 3).double()), "x is torch.float64"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
