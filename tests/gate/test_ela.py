"""Efficient local attention: profiles along the right axes, their groups, and the dossier's pitfalls."""

import pytest
import torch
from torch import nn

from regardant.gate.ela import ELA


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomised(gate):
    """Scales and offsets that are not 1 and 0."""
    for number, parameter in enumerate(gate.parameters()):
        parameter.data = parameter.data + 0.3 * maps(*parameter.shape, seed=50 + number)
    return gate


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("variant", ["T", "B", "S", "L"])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (12, 5)])
def test_forward_is_the_equation(variant, tied, size):
    gate = randomised(ELA(32, variant=variant, tied=tied).double())
    x = maps(2, 32, *size)
    torch.testing.assert_close(gate(x), gate.reference(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_by_hand_for_one_channel():
    """A map of one channel: its profile is smoothed by the kernel, standardised over the axis, squashed."""
    gate = ELA(1).double()
    gate.along_height.conv.weight.copy_(torch.arange(1.0, 8.0).view(1, 1, 7))
    x = maps(1, 1, 3, 4)
    rows = x[0, 0].mean(dim=1).tolist()
    heard = [sum((4 + j - i) * rows[j] for j in range(3)) for i in range(3)]
    mean = sum(heard) / 3
    deviation = (sum((each - mean) ** 2 for each in heard) / 3 + 1e-5) ** 0.5
    expected = torch.tensor([(each - mean) / deviation for each in heard], dtype=torch.float64).sigmoid()
    torch.testing.assert_close(gate.maps(x)[0].flatten(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("variant", "kernel", "meeting"), [("T", 5, 1), ("B", 7, 1), ("S", 5, 8), ("L", 7, 8)]
)
def test_parameters_are_the_kernels_and_two_a_channel(variant, kernel, meeting):
    for channels in (64, 256):
        expected = kernel * meeting * channels + 2 * channels
        for tied in (True, False):
            gate = ELA(channels, variant=variant, tied=tied)
            assert sum(each.numel() for each in gate.parameters()) == expected * (1 if tied else 2)


def test_pitfall_groups_that_do_not_divide_are_the_greatest_common_divisor():
    found = {channels: ELA(channels).along_height.norm.num_groups for channels in (1, 8, 20, 24, 48, 100)}
    assert found == {1: 1, 8: 8, 20: 4, 24: 8, 48: 16, 100: 4}
    assert ELA(96, variant="T").along_height.norm.num_groups == 32
    # 44 channels in 44 // 8 = 5 groups: 5 does not divide 44.
    assert ELA(44, variant="S").along_height.conv.groups == 1


@torch.no_grad()
def test_pitfall_a_gate_of_zero_logits_lets_a_quarter_through():
    gate = ELA(16).double()
    nn.init.zeros_(gate.along_height.norm.weight)
    x = maps(1, 16, 5, 6)
    torch.testing.assert_close(gate(x), x / 4, rtol=0, atol=0)


def test_pitfall_c_over_8_counts_groups_and_not_channels_in_one():
    for channels in (64, 256):
        conv = ELA(channels, variant="L").along_height.conv
        assert conv.groups == channels // 8 and conv.weight.shape == (channels, 8, 7)


@torch.no_grad()
def test_pitfall_the_weight_of_a_row_is_pooled_over_the_width():
    gate, x = randomised(ELA(16).double()), maps(2, 16, 6, 9)
    rows, columns = gate.maps(x)
    assert rows.shape == (2, 16, 6, 1) and columns.shape == (2, 16, 1, 9)
    shuffled, other = x[..., torch.randperm(9, generator=torch.Generator().manual_seed(1))], x.clone()
    torch.testing.assert_close(gate.maps(shuffled)[0], rows)
    assert not torch.allclose(gate.maps(shuffled)[1], columns)
    other[:, :, 4] += (
        1.0  # one row: every column's mean moves by the same, which GroupNorm does not undo alone
    )
    assert not torch.allclose(gate.maps(other)[0], rows)
    torch.testing.assert_close(gate(x), x * rows * columns, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_pitfall_rows_and_columns_are_not_transposed():
    """With tied weights, the gate of a transposed map, not a square one, is the transposed gate."""
    gate, x = randomised(ELA(16, variant="S").double()), maps(2, 16, 6, 9)
    torch.testing.assert_close(gate(x.transpose(2, 3)), gate(x).transpose(2, 3), rtol=1e-12, atol=1e-12)
    untied = randomised(ELA(16, tied=False).double())
    assert not torch.allclose(untied(x.transpose(2, 3)), untied(x).transpose(2, 3))


@torch.no_grad()
def test_training_and_evaluation_are_the_same_and_samples_do_not_meet():
    gate, x = randomised(ELA(16).double()), maps(3, 16, 5, 5)
    assert torch.equal(gate.train()(x), gate.eval()(x))
    torch.testing.assert_close(gate.train()(x[:1]), gate(x)[:1], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_weights_may_come_from_another_map():
    gate, x, other = randomised(ELA(16).double()), maps(2, 16, 4, 5), maps(2, 16, 4, 5, seed=3)
    torch.testing.assert_close(gate(x, source=other), x * gate.weights(other), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"source has shape \(2, 16, 4, 4\), but it is \(2, 16, 4, 5\)"):
        gate(x, source=other[..., :4])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ELA(0), "channels is 0"),
        (lambda: ELA(8, variant="X"), "no variant is called 'X'"),
        (lambda: ELA(8)(torch.zeros(2, 9, 3, 3)), "x has 9 channels"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
