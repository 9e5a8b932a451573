"""What is taken out of networks. Layers themselves need checkouts; they are compared where they are timed."""

import torch
from torch import nn

from bench.contest import Contest
from bench.vision_layers import LAYERS, bare
from bench.vision_match import Match, channels_first, several, spell, tokens


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        return x.softmax(dim=-1) @ self.weight


class TheirBlock(nn.Module):
    """As the authors write it: the size is looked up, and sums are taken from either side."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(4), nn.LayerNorm(4), Attention()
        self.mlp, self.drop_path = nn.Linear(4, 4), nn.Identity()

    def forward(self, x, scale):
        b, n, c = x.shape
        shortcut = x
        x = self.norm1(x).view(b * n, c)
        x = scale * self.attn(x).view(b, n, c) + shortcut
        return x + self.drop_path(self.mlp(self.norm2(x)))


def test_a_bare_block_is_its_layer_alone_with_the_layers_gradients():
    block = TheirBlock()
    attention = block.attn
    layer = bare(block, 3)
    assert list(layer.parameters()) == [attention.weight]
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = (x, attention.weight)
    alone = 3 * attention(x)
    torch.testing.assert_close(layer(x), alone, rtol=0, atol=0)
    grad = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))
    found, expected = (torch.autograd.grad(y, wanted, grad) for y in (layer(x), alone))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_block_that_adds_from_the_left_is_bare_too():
    block = TheirBlock()
    block.forward = lambda x: x + block.drop_path(block.attn(block.norm1(x)))
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bare(block)(x), block.attn(x))


def test_both_sides_get_the_same_numbers_each_in_its_own_layout():
    one = nn.Identity()
    for laid in (tokens, channels_first):
        match = Match("a / b", "davit", lambda: None, "b", layer=True, laid=laid)
        contest = match.contest((one, one), (2, 3, 5, 4))
        (ours,), (theirs,) = contest.given
        assert torch.equal(laid(ours), theirs)
        assert theirs.is_contiguous()
        assert [call().shape for call in contest.calls("forward")] == [ours.shape, theirs.shape]
    assert theirs[1, 3, 2, 4] == ours[1, 2, 4, 3]


def test_a_layer_may_have_several_inputs_and_gradients_go_to_all():
    shapes = ((1, 2, 3), (1, 5, 3))
    assert spell(shapes) == "1 × 2 × 3 and 1 × 5 × 3"
    assert several((1, 2, 3)) == ((1, 2, 3),)

    class Sum(nn.Module):
        def forward(self, x, y):
            return 2 * x.sum() + 3 * y.sum()

    match = Match("a / b", "davit", lambda: None, "b", (shapes,), layer=True)
    contest = match.contest((Sum(), Sum()), shapes)
    assert [x.shape for x in contest.inputs] == list(shapes)
    by_x, by_y = contest.calls("backward")[1]()
    assert torch.equal(by_x / by_x[0, 0, 0] * 2, torch.full(shapes[0], 2.0))
    torch.testing.assert_close(by_y, torch.full(shapes[1], 1.5) * by_x[0, 0, 0])


def test_a_layer_without_inputs_of_its_own_is_given_ours():
    x = torch.ones(2, 3)
    contest = Contest(lambda x: x, lambda x: x * 2, (x,))
    assert contest.given == ((x,), (x,))
    assert [y.sum().item() for y in contest.outputs()] == [6, 12]


def test_layers_are_no_whole_networks_and_are_compared_everywhere():
    assert all(match.layer and match.border == 0 and match.trains for match in LAYERS)
    assert len({match.name for match in LAYERS}) == len(LAYERS)
