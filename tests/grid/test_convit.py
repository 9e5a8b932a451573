"""Gated positional attention: its two softmaxes, where heads look at first, the dossier's pitfalls."""

import pytest
import torch

from regardant.grid.convit import GatedPositionalAttention

HEIGHT, WIDTH = 3, 5


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def layer(dim=12, heads=4, **options):
    torch.manual_seed(0)
    made = GatedPositionalAttention(dim, heads, **options).double()
    made.gate.copy_(torch.linspace(-1, 1, heads))
    return made


def shifting(dim, heads):
    """One that looks by place alone, sharply, and gives the values as they are."""
    made = GatedPositionalAttention(dim, heads, locality=50.0).double()
    made.gate.data.fill_(50.0)
    made.to_out.weight.data.copy_(torch.eye(dim))
    made.to_out.bias.data.zero_()
    return made


@torch.no_grad()
def test_pitfall_two_softmaxes_are_mixed_and_no_logits_added():
    attention, x = layer(), maps(2, HEIGHT, WIDTH, 12)
    q, k, v = attention.project(x.flatten(1, 2))
    expected = torch.empty(2, HEIGHT * WIDTH, 12, dtype=torch.float64)
    places = [(row, column) for row in range(HEIGHT) for column in range(WIDTH)]
    for head in range(4):
        gate, (along_x, along_y, squared) = attention.gate[head].sigmoid(), attention.position[head]
        by_content = (q[:, head] @ k[:, head].mT / 3**0.5).softmax(-1)
        scores = torch.tensor(
            [
                [
                    along_x * (j - column)
                    + along_y * (i - row)
                    + squared * ((i - row) ** 2 + (j - column) ** 2)
                    for i, j in places
                ]
                for row, column in places
            ],
            dtype=torch.float64,
        )
        mixed = (1 - gate) * by_content + gate * scores.softmax(-1)
        torch.testing.assert_close(mixed.sum(-1), torch.ones_like(mixed[..., 0]))
        expected[..., 3 * head : 3 * head + 3] = mixed @ v[:, head]
    expected = attention.to_out(expected).unflatten(1, (HEIGHT, WIDTH))
    torch.testing.assert_close(attention(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attention.reference(x), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_pitfall_offsets_are_key_minus_query():
    """Nine heads begin at the nine places of a 3×3 kernel, rows running fastest, right and down above 0."""
    attention, x = shifting(9, 9), maps(1, 6, 7, 9)
    found = attention(x)
    for head in range(9):
        right, down = head // 3 - 1, head % 3 - 1
        inside = found[0, 1:-1, 1:-1, head]
        assert torch.allclose(inside, x[0, 1 + down : 5 + down, 1 + right : 6 + right, head])


@torch.no_grad()
def test_an_even_kernel_lies_between_the_positions():
    attention = GatedPositionalAttention(8, 4, locality=2.0).double()
    places = attention.position[:, :2] / -2 / attention.position[:, 2:]
    expected = [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
    torch.testing.assert_close(places, torch.tensor(expected, dtype=torch.float64))
    assert attention.position[:, 2].tolist() == [-2.0] * 4


@torch.no_grad()
def test_pitfall_heads_beyond_the_largest_square_begin_at_random():
    position = GatedPositionalAttention(12, 6).position
    assert position[:4, 2].tolist() == [-1.0] * 4
    assert position[4:].abs().max() < 0.2 and position[4:].abs().min() > 0


@torch.no_grad()
def test_pitfall_the_identity_of_the_values_is_there_after_another_initialisation():
    attention = GatedPositionalAttention(8, 4)
    attention.to_qkv.weight.normal_()
    attention.begin()
    assert torch.equal(attention.to_qkv.weight[16:], torch.eye(8))
    assert attention.gates.tolist() == pytest.approx([0.7310586] * 4)
    at_random = GatedPositionalAttention(8, 4, locality=None)
    assert not torch.equal(at_random.to_qkv.weight[16:], torch.eye(8))
    assert at_random.position.abs().max() < 0.2


@torch.no_grad()
def test_distances_are_those_of_the_places():
    attention = shifting(9, 9)
    found = attention.distances(maps(2, 4, 5, 9))
    # A head that looks beyond the edge sees the position at the edge.
    for head in range(9):
        right, down = head // 3 - 1, head % 3 - 1
        apart = [
            (min(max(row + down, 0), 3) - row, min(max(column + right, 0), 4) - column)
            for row in range(4)
            for column in range(5)
        ]
        assert found[head].item() == pytest.approx(sum((i**2 + j**2) ** 0.5 for i, j in apart) / 20)


@torch.no_grad()
def test_weights_are_what_the_values_are_mixed_by():
    attention, x = layer(heads=3), maps(2, 2, 4, 12)
    *_, v = attention.project(x.flatten(1, 2))
    heard = (attention.weights(x) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x).flatten(1, 2), attention.to_out(heard), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GatedPositionalAttention(10, 4), "10"),
        (lambda: GatedPositionalAttention(8, 4, locality=0.0), "locality is 0.0"),
        (lambda: GatedPositionalAttention(8, 4)(torch.zeros(1, 3, 3, 5)), "5"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
