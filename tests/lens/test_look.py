import pytest
import torch
from torch import nn

import regardant
from regardant.core.grid_attention import WholeMapAttention
from regardant.grid.cswin import CrossShapedAttention
from regardant.grid.maxvit import BlockAttention, GridAttention
from regardant.lens.look import looks


@pytest.mark.parametrize(
    "layer",
    [
        BlockAttention(8, 2, window=3),
        GridAttention(8, 2, cells=2),
        CrossShapedAttention(8, heads_each=2, stripe=2, lepe=False),
        WholeMapAttention(8, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_mixing_matrix_times_the_values_is_the_output(layer):
    layer = layer.double()
    x = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = layer.mixing_matrix(x)
    values = layer.to_qkv(x)[..., 16:].unflatten(-1, (layer.heads, -1)).flatten(1, 2).transpose(1, 2)
    heard = (matrix @ values).transpose(1, 2).flatten(2).unflatten(1, (5, 4))
    assert torch.allclose(layer.to_out(heard), layer(x), atol=1e-12)
    assert torch.allclose(matrix.sum(-1), torch.ones(()).double(), atol=1e-12)


def small():
    torch.manual_seed(0)
    return regardant.create(
        "maxvit", widths=(8, 16), depths=(1, 1), stem=4, head_dim=4, window=2, classes=3, image_channels=1
    )


def test_a_look_is_the_asking_positions_row_and_the_model_stays_as_it_was():
    model, images = small(), torch.randn(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    seen = looks(model, images, at=(0.3, 0.9))
    assert [look.kind for look in seen.layers.values()] == ["BlockAttention", "GridAttention"] * 2
    assert [tuple(look.map.shape) for look in seen.layers.values()] == [(2, 2, 8, 12)] * 2 + [
        (2, 4, 4, 6)
    ] * 2
    block = next(iter(seen.layers.values())).map
    # Row 2 and column 10 of 8 × 12: the window of rows 2 and 3, columns 10 and 11.
    assert torch.allclose(block[..., 2:4, 10:].sum((-2, -1)), torch.ones(()))
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    assert torch.equal(seen.images, images)


def test_looks_are_drawn_with_a_panel_for_every_layer(tmp_path):
    pytest.importorskip("matplotlib")
    seen = looks(small(), torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    figure = seen.plot(tmp_path / "looks.png", title="what it sees")
    assert len(figure.axes) == 3 * 5
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "image\n32×32", "BlockAttention\n8×8", "GridAttention\n8×8",
    ]  # fmt: skip
    assert figure.get_suptitle() == "what it sees"
    # In the middle of row 4 of 8, four pixels each.
    assert figure.axes[1].collections[-1].get_offsets().tolist() == [[17.5, 17.5]]
    assert (tmp_path / "looks.png").read_bytes()[:4] == b"\x89PNG"


def test_models_that_look_at_nothing_and_places_off_the_image_are_refused():
    images = torch.rand(1, 1, 32, 32)
    with pytest.raises(ValueError, match="Conv2d holds no attention on maps"):
        looks(nn.Conv2d(1, 1, 3), images)
    with pytest.raises(ValueError, match=r"at is \(1.0, 0.5\), but holds two shares"):
        looks(small(), images, at=(1.0, 0.5))
