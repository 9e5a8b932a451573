"""The pyramid of any mixer, and the mixers and gates of the foundation among the parts of the kit."""

import pytest
import torch
from torch import nn

from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.field import field_of
from regardant.backbone.kit.mixers import around, maker
from regardant.backbone.kit.residual import call
from regardant.backbone.kit.stage import Block, Stage, make_layers
from regardant.backbone.kit.stem import patches
from regardant.backbone.pyramid import Pyramid
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_position import DepthwisePosition
from regardant.core.grid_window import WindowAttention
from regardant.gate.channels_last import ChannelsLast
from regardant.gate.eca_net import ECA
from regardant.grid.axial_transformer import AxialAttention
from regardant.grid.ccnet import CrissCrossAttention
from regardant.grid.inline_attention import InLineAttention
from regardant.grid.neighborhood import NeighborhoodAttention

MIXERS = {
    "A": maker("axial", combine="sum"),
    "R": maker("ccnet", recurrence=1, reduction=2),
    "N": maker("neighborhood", kernel=3, dilation=2, relative_bias=True),
}
"""By their letters, each with a field that is less than everything."""


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def alive(network):
    """In float64, with nothing that begins at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network.double().eval()


def stage(letters, *, gate=False):
    def layer(letter):
        return lambda rate: around(
            MIXERS[letter](8, 2), 8, feed_forward=FeedForward(8, 12), drop_path=rate,
            gate=ChannelsLast(ECA(8)) if gate else None,
        )  # fmt: skip

    layers = make_layers(letters, {letter: layer(letter) for letter in MIXERS}, [0.0] * len(letters))
    return alive(Stage(layers, entry=patches(4, 8, size=2, kernel=3)))


@torch.no_grad()
@pytest.mark.parametrize("letters", ["A", "R", "N", "NAR"])
@pytest.mark.parametrize("size", [(7, 13), (1, 1), (10, 5)])
def test_letters_of_a_stage_are_the_equations_of_their_mixers(letters, size):
    made, x = stage(letters), maps(2, *size, 4)
    expected = made.entry(x)
    for letter, layer in zip(letters, made.layers):
        if letter == "R":  # its own residual, and no norm before it
            mixer, feed = layer
            expected = mixer.reference(expected)
        else:
            mixer, feed = layer.mix, layer.feed
            expected = expected + mixer.branch.reference(mixer.norm(expected))
        expected = expected + feed.branch(feed.norm(expected))
    torch.testing.assert_close(made(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(call(made, x, plainly=True), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("letters", ["A", "R", "N", "NA", "RN"])
@pytest.mark.parametrize("size", [(7, 13), (9, 4)])
def test_a_stage_sees_what_it_says_and_all_of_it(letters, size):
    made, x = stage(letters), maps(1, *size, 4).requires_grad_()
    field = field_of(made, *size)
    assert field.after == (-(-size[0] // 2), -(-size[1] // 2))
    y = made(x).flatten(1, 2)
    for at in range(0, y.shape[1], 3):
        (felt,) = torch.autograd.grad(y[0, at].square().sum(), x, retain_graph=True)
        assert torch.equal(felt[0].abs().sum(-1).flatten() > 0, field.relation[at]), at


def test_fields_of_the_letters_are_no_more_than_their_patterns():
    lines = torch.zeros(5, 7, dtype=torch.bool)
    lines[2], lines[:, 3] = True, True
    for letter in "AR":
        field = field_of(around(MIXERS[letter](8, 2), 8), 5, 7)
        assert torch.equal(field.relation[2 * 7 + 3].reshape(5, 7), lines)
    near = field_of(around(MIXERS["N"](8, 2), 8), 5, 7).relation[2 * 7 + 3].reshape(5, 7)
    assert near.nonzero().tolist() == [[row, column] for row in (0, 2, 4) for column in (1, 3, 5)]


@torch.no_grad()
def test_pitfall_a_mixer_with_a_residual_of_its_own_gets_no_second_one():
    """Fresh, criss-cross attention passes x on as it is; a norm and a shortcut around it would not."""
    x = maps(1, 3, 5, 8)
    fresh = around(CrissCrossAttention(8), 8).double()
    assert torch.equal(fresh(x), x)
    assert isinstance(around(AxialAttention(8, 2), 8), Block)


@torch.no_grad()
def test_positions_on_the_map_go_before_any_of_them():
    place = alive(DepthwisePosition(8))

    class Placed(nn.Module):
        def forward(self, x):
            return place.embed(x)

    for make in MIXERS.values():
        layer = alive(around(make(8, 2), 8))
        placed = around(make(8, 2), 8, before=Placed()).double()
        placed.load_state_dict(layer.state_dict() if isinstance(placed, Block) else {
            f"{1 + int(name[0])}{name[1:]}": value for name, value in layer.state_dict().items()
        })  # fmt: skip
        x = maps(2, 5, 7, 8)
        torch.testing.assert_close(placed(x), layer(place.embed(x)), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_eca_in_a_block_weighs_the_channels_of_what_the_mixer_says():
    plain, gated = stage("A").layers[0], stage("A", gate=True).layers[0]
    state = plain.state_dict()
    gated.load_state_dict(
        {name: state.get(name.replace("branch.0.", "branch."), value)
         for name, value in gated.state_dict().items()}
    )  # fmt: skip
    x = maps(2, 5, 3, 8)
    said = plain.mix.branch(plain.mix.norm(x))
    kernel = gated.mix.branch[1].gate.conv.weight.flatten()
    pooled = nn.functional.pad(said.mean(dim=(1, 2)), (len(kernel) // 2,) * 2)
    weights = sum(tap * pooled[:, at : at + 8] for at, tap in enumerate(kernel)).sigmoid()
    expected = plain.feed(x + said * weights[:, None, None])
    torch.testing.assert_close(gated(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("axial", AxialAttention), ("Axial-Attention", AxialAttention), ("axial_transformer", AxialAttention),
        ("ccnet", CrissCrossAttention), ("criss-cross", CrissCrossAttention),
        ("neighborhood", NeighborhoodAttention), ("inline", InLineAttention), ("window", WindowAttention),
    ],
)  # fmt: skip
def test_mixers_go_by_their_classes_and_files(name, kind):
    assert type(maker(name)(8, 2)) is kind


def test_several_mixers_take_turns_and_makers_are_taken_as_they_are():
    made = Pyramid(
        widths=(8, 8), heads=(2, 2), depths=(3, 1), classes=2,
        mixer=("axial", lambda dim, heads: WindowAttention(dim, heads, window=3)),
    )  # fmt: skip
    kinds = [[type(layer.mix.branch) for layer in stage.layers] for stage in made.stages]
    assert kinds == [[AxialAttention, WindowAttention, AxialAttention], [AxialAttention]]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(mixer="axal"), "no grid mixer is called 'axal'; the nearest are axial"),
        (dict(mixer="axial", options=dict(window=3)), "AxialAttention takes no window; it takes axes"),
        (dict(mixer="neighborhood_attention3d"), "is for maps of 3 axes, not 2"),
        (dict(mixer=()), "mixer is empty"),
        (dict(gate="ecca"), "no gate is called 'ecca'"),
    ],
)
def test_bad_input_is_one_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        Pyramid(widths=(8,), heads=(2,), depths=(1,), **given)


@torch.no_grad()
def test_every_grid_mixer_of_two_axes_can_be_named():
    """With nothing but its name, or the few options that it cannot do without."""
    from regardant.core.by_name import classes

    found = {each for each in classes("regardant.grid", GridMixer).values() if each.rank == 2}
    images = torch.randn(1, 3, 37, 20, generator=torch.Generator().manual_seed(0))
    for each in found:
        model = Pyramid(widths=(8, 16), heads=(2, 4), depths=(1, 1), classes=3, mixer=each.__name__).eval()
        assert torch.isfinite(model(images)).all()
