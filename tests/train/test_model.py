"""The networks around a mixer."""

from functools import partial

import pytest
import torch
from torch import nn

from regardant.core.record import Record
from regardant.gate.eca_net import ECA
from regardant.grid.axial_transformer import AxialAttention
from regardant.sequence.softmax import Softmax
from regardant.train.image_model import AxialImageModel, RasterImageModel
from regardant.train.model import Block, Classifier, TokenModel, VectorModel
from regardant.train.residual_net import GatedResidualNet

SOFTMAX = partial(Softmax, 8, 2, causal=True)


class Noting(nn.Module):
    def forward(self, x, *, record=None):
        if record is not None:
            record.note("widths", torch.tensor(x.shape[-1]))
            record.add_loss("aux", x.sum() * 0 + 1.5)
        return x


def test_a_block_is_pre_norm_with_two_residuals():
    block = Block(nn.Linear(8, 8), 8).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    after = x + block.mixer(block.mixer_norm(x))
    assert torch.allclose(block(x), after + block.mlp(after), atol=1e-12)
    without = Block(nn.Identity(), 8, expansion=0)
    assert torch.allclose(without(x.float()), x.float() + without.mixer_norm(x.float()))


def test_a_causal_mixer_makes_a_causal_model():
    model = TokenModel(11, [SOFTMAX] * 2, dim=8, length=9).double()
    tokens = torch.randint(11, (2, 9))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    one, other = model(tokens), model(changed)
    assert torch.equal(one[:, :5], other[:, :5]) and not torch.equal(one[:, 5:], other[:, 5:])


def test_learned_positions_tell_places_apart():
    tokens = torch.zeros(1, 6, dtype=torch.long)
    alike = TokenModel(4, [SOFTMAX], dim=8)(tokens)
    assert torch.allclose(alike[:, 0], alike[:, 5], atol=1e-6)
    apart = TokenModel(4, [SOFTMAX], dim=8, length=6)(tokens)
    assert not torch.allclose(apart[:, 0], apart[:, 5], atol=1e-3)


def test_the_record_passes_through_every_layer():
    record = Record()
    VectorModel(3, 2, [Noting] * 3, dim=8)(torch.randn(1, 4, 3), record=record)
    assert [int(width) for width in record.seen["widths"]] == [8, 8, 8]
    assert record.loss().item() == pytest.approx(4.5)


def test_a_classifier_reads_the_last_position():
    torch.manual_seed(0)
    model = Classifier(3, 4, [SOFTMAX], dim=8)
    x = torch.randn(2, 6, 3)
    assert torch.equal(model(x), VectorModel.forward(model, x)[:, -1])


def test_maps_go_through_grid_mixers():
    model = VectorModel(5, 3, [partial(AxialAttention, 8, 2)], dim=8, size=(6, 7))
    assert model(torch.randn(2, 6, 7, 5)).shape == (2, 6, 7, 3)
    assert model(torch.randn(2, 4, 3, 5)).shape == (2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"size \[8, 7\].*at most \[6, 7\]"):
        model(torch.randn(2, 8, 7, 5))


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="mixers is empty"):
        TokenModel(4, [], dim=8)


def test_a_gate_sits_on_every_residual_branch():
    model = GatedResidualNet(ECA, widths=(4, 8))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    shut = GatedResidualNet(lambda channels: Shut(), widths=(4,)).eval()
    x = torch.rand(1, 1, 8, 8)
    only_skip = shut.head(shut.stem(x).relu().mean(dim=(-2, -1)))
    assert torch.allclose(shut(x), only_skip, atol=1e-6)


class Shut(nn.Module):
    def forward(self, x):
        return 0 * x


def image_models():
    def along(axis, causal):
        return partial(AxialAttention, 8, 2, axes=axis, is_causal=causal)

    inner = [along(1, True)]
    yield AxialImageModel(5, outer=[along(1, False), along(0, True)], inner=inner, dim=8, size=(4, 3))
    yield RasterImageModel(5, [SOFTMAX] * 2, dim=8, size=(4, 3))


@pytest.mark.parametrize("model", list(image_models()), ids=["axial", "raster"])
def test_a_pixel_is_predicted_from_those_before_it_in_raster_order(model):
    model = model.double()
    image = torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(0))
    plain = model(image[None])[0].flatten(0, 1)
    for place in range(12):
        changed = image.flatten().clone()
        changed[place] = (changed[place] + 1) % 5
        moved = (model(changed.view(1, 4, 3))[0].flatten(0, 1) - plain).abs().amax(dim=-1)
        assert moved[: place + 1].max() <= 1e-12
        assert place == 11 or moved[place + 1] > 1e-9
