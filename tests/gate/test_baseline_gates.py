"""The gates that others are measured against: squeeze-and-excitation, coordinate attention."""

import pytest
import torch

from regardant.gate.coordinate_attention import CoordinateAttention
from regardant.gate.squeeze_excitation import SqueezeExcitation


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_squeeze_and_excitation_by_hand():
    gate, x = SqueezeExcitation(4, reduction=2).double(), maps(2, 4, 3, 5)
    hidden = (x.mean(dim=(2, 3)) @ gate.narrow.weight.T + gate.narrow.bias).clamp(min=0)
    weights = torch.sigmoid(hidden @ gate.widen.weight.T + gate.widen.bias)
    torch.testing.assert_close(gate(x), x * weights[:, :, None, None])
    assert SqueezeExcitation(8).narrow.out_features == 1


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_coordinate_attention_is_its_equation(training):
    gate, x = CoordinateAttention(12).double(), maps(3, 12, 4, 6)
    gate.norm.running_mean.copy_(maps(8, seed=1))
    gate.train(training)
    torch.testing.assert_close(gate.reference(x), gate.eval()(x) if not training else gate.train()(x))
    rows, columns = gate.eval().maps(x)
    assert rows.shape == (3, 12, 4, 1) and columns.shape == (3, 12, 1, 6)


@torch.no_grad()
def test_the_batch_norm_of_coordinate_attention_lets_samples_meet_in_training():
    gate, x = CoordinateAttention(12).double(), maps(3, 12, 4, 6)
    assert not torch.allclose(gate.train()(x)[:1], gate.train()(x[:1]))
    torch.testing.assert_close(gate.eval()(x)[:1], gate.eval()(x[:1]))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SqueezeExcitation(0), "channels is 0"),
        (lambda: SqueezeExcitation(8, reduction=0), "reduction is 0"),
        (lambda: CoordinateAttention(8, reduction=0), "reduction is 0"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
