"""FFNified attention: its equation, its reach, and the dossier's pitfalls."""

import pytest
import torch
from torch import nn

from regardant.grid.metamixer_ffnet import Around, FFNifiedAttention, MetaMixer


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (3, 8), (7, 5)])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_forward_is_the_equation(kernel, size):
    layer, x = FFNifiedAttention(4, kernel=kernel).double(), maps(2, *size, 4)
    torch.testing.assert_close(layer(x), layer.reference(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_by_hand_for_one_channel_in_a_row():
    layer = FFNifiedAttention(1, kernel=3).double()
    nn.init.constant_(layer.to_q.weight, 2.0)
    for part, taps in ((layer.keys, [0.5, 1.0, -1.0]), (layer.values, [3.0, 0.0, 1.0])):
        nn.init.zeros_(part.weight), nn.init.zeros_(part.bias)
        part.weight[0, 0, 1] = torch.tensor(taps)
    nn.init.constant_(layer.to_q.bias, 0.0)
    x = [1.0, -1.0, 2.0]
    q = [0.0, *(2 * each for each in x), 0.0]
    logits = torch.tensor([0.5 * q[i] + q[i + 1] - q[i + 2] for i in range(3)], dtype=torch.float64)
    c = [0.0, *nn.functional.gelu(logits).tolist(), 0.0]
    expected = [3 * c[i] + c[i + 2] for i in range(3)]
    found = layer(torch.tensor(x, dtype=torch.float64).view(1, 1, 3, 1)).flatten()
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_pitfall_nothing_but_the_activation_stands_between_key_and_value():
    """Channels meet in the query projection alone: behind it each goes its own way."""
    layer = FFNifiedAttention(3, kernel=3).double()
    with torch.no_grad():
        layer.to_q.weight.copy_(torch.eye(3))
    x = maps(1, 4, 4, 3).requires_grad_()
    (felt,) = torch.autograd.grad(layer(x)[..., 1].sum(), x)
    assert felt[..., 1].any() and not felt[..., [0, 2]].any()


@torch.no_grad()
def test_pitfall_coefficients_are_not_normalised():
    """Without biases, twice the value kernel is twice the output; large maps do not shrink coefficients."""
    layer, x = FFNifiedAttention(4, kernel=3, bias=False).double(), maps(1, 5, 5, 4)
    before = layer(x)
    layer.values.weight *= 2
    torch.testing.assert_close(layer(x), 2 * before)
    wide = torch.cat([x, maps(1, 5, 40, 4, seed=1)], dim=2)
    torch.testing.assert_close(layer(wide)[:, :, :3], 2 * before[:, :, :3])


@pytest.mark.parametrize("size", [(3, 4), (6, 5)])
def test_around_is_a_square_that_borders_cut_off(size):
    pattern = Around(1).on(*size)
    dense = pattern.dense(size[0] * size[1]).view(*size, *size)
    for i in range(size[0]):
        for j in range(size[1]):
            expected = torch.zeros(size, dtype=torch.bool)
            expected[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = True
            assert torch.equal(dense[i, j], expected)
    assert FFNifiedAttention(2, kernel=5).receptive_field(*size) == Around(4).on(*size)


@torch.no_grad()
def test_the_frame_holds_attention_and_feed_forwards_as_well():
    """A feed-forward layer is the frame without a query: keys in its first layer, values in its second."""
    first, second = nn.Linear(4, 9).double(), nn.Linear(9, 4).double()
    frame = MetaMixer(nn.Identity(), first, second, activation=nn.ReLU())
    x = maps(2, 3, 3, 4)
    torch.testing.assert_close(frame(x), second(first(x).relu()))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(lambda: FFNifiedAttention(4, kernel=2), "kernel is 2"), (lambda: FFNifiedAttention(0), "dim is 0")],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
