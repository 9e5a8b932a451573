"""Subspace attention: one softmax map a group, on top of what is there, and the dossier's pitfalls."""

import pytest
import torch
from torch import nn

from regardant.gate.ulsam import ULSAM


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def used(channels=8, groups=2):
    """A gate whose normalisations have seen something."""
    gate = ULSAM(channels, groups=groups).double()
    for number, value in enumerate([*gate.parameters(), *gate.buffers()]):
        if value.is_floating_point():
            value.data = value.data + 0.3 * maps(*value.shape, seed=number).abs()
    return gate.eval()


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("groups", "size"), [(1, (7, 13)), (2, (4, 4)), (4, (1, 2)), (8, (5, 3))])
def test_forward_is_the_equation(groups, size, training):
    gate, x = used(groups=groups).train(training), maps(3, 8, *size)
    torch.testing.assert_close(gate(x), gate.reference(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gate(x), x * gate.weights(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_by_hand():
    """One channel, identity scale and norms: the largest neighbour of each position, then a softmax."""
    gate = ULSAM(1, groups=1).double().eval()
    for norm in (gate.scale_norm, gate.score_norm):
        norm.eps = 0.0
    for conv in (gate.scale, gate.score):
        nn.init.ones_(conv.weight), nn.init.zeros_(conv.bias)
    x = torch.tensor([[[[1.0, -2.0, 0.0, -3.0, 0.5]]]], dtype=torch.float64)
    best = torch.tensor([1.0, 1.0, 0.0, 0.5, 0.5], dtype=torch.float64)
    share = best.exp() / best.exp().sum()
    torch.testing.assert_close(gate.maps(x).flatten(), share)
    torch.testing.assert_close(gate(x).flatten(), x.flatten() * (1 + share))


def test_parameters_hardly_depend_on_the_groups():
    for channels, groups in [(64, 1), (64, 4), (64, 16), (512, 4)]:
        gate = ULSAM(channels, groups=groups)
        convolutions = sum(each.numel() for conv in (gate.scale, gate.score) for each in conv.parameters())
        assert convolutions == 3 * channels + groups
        assert sum(each.numel() for each in gate.parameters()) == 5 * channels + 3 * groups


@torch.no_grad()
def test_pitfall_a_map_sums_to_one_so_that_a_large_one_hardly_gates():
    gate = used()
    small, large = gate.maps(maps(2, 8, 3, 3)), gate.maps(maps(2, 8, 40, 40))
    for found in (small, large):
        torch.testing.assert_close(found.sum(dim=(2, 3)), torch.ones(2, 2, dtype=torch.float64))
    x = maps(2, 8, 40, 40)
    assert 0 < (gate(x) / x - 1).abs().mean() < 2 / 1600


@torch.no_grad()
def test_pitfall_logits_are_never_negative():
    gate = used()
    nn.init.constant_(gate.score_norm.bias, -100.0)
    torch.testing.assert_close(gate.maps(maps(1, 8, 5, 4)), torch.full((1, 2, 5, 4), 1 / 20).double())


@torch.no_grad()
def test_pitfall_softmax_runs_over_positions_group_by_group():
    gate, x = used(), maps(1, 8, 6, 5)
    nn.init.constant_(gate.score_norm.bias, 20.0)  # no logit is cut off
    changed = x.clone()
    changed[:, 4:] = maps(1, 4, 6, 5, seed=9)
    before, after = gate.maps(x), gate.maps(changed)
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1], after[:, 1])


@torch.no_grad()
def test_pitfall_the_first_convolution_sees_one_position_of_one_channel():
    gate = used()
    assert gate.scale.weight.shape == (8, 1, 1, 1)
    # So what a position says is heard by its eight neighbours, through the maximum, and no farther.
    x = -maps(1, 8, 7, 7).abs()
    loud = x.clone()
    loud[:, :, 3, 3] = 50.0
    ratio = gate.maps(loud)[0, 0].log() - gate.maps(x)[0, 0].log()
    heard = (ratio - ratio[0, 0]).abs() > 1e-9
    assert heard.nonzero().tolist() == [[i, j] for i in (2, 3, 4) for j in (2, 3, 4)]


def test_pitfall_one_position_in_training_is_refused_in_a_sentence():
    gate, x = ULSAM(8), torch.zeros(1, 8, 1, 1)
    with pytest.raises(ValueError, match="takes more than one position"):
        gate(x)
    assert gate.eval()(x).shape == x.shape and ULSAM(8)(torch.zeros(2, 8, 1, 1)).shape == (2, 8, 1, 1)


def test_pitfall_torchs_defaults_are_left_alone():
    assert torch.get_default_dtype() is torch.float32 and torch.zeros(1).device.type == "cpu"


@torch.no_grad()
def test_weights_may_come_from_another_map():
    gate, x, other = used(), maps(2, 8, 4, 5), maps(2, 8, 4, 5, seed=3)
    torch.testing.assert_close(gate(x, source=other), x * gate.weights(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(10, 4), (8, 0), (0, 1)])
def test_bad_input_is_one_sentence(channels, groups):
    with pytest.raises(ValueError, match=f"groups={groups} does not divide channels={channels}"):
        ULSAM(channels, groups=groups)
