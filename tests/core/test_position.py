"""Positions: rotations that know only distances, slopes, buckets, tables."""

from math import log

import pytest
import torch
from torch import nn

from regardant.core.position import (
    Alibi,
    Learned,
    Position,
    RelativeBias,
    Rotary,
    alibi_slopes,
    make_position,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rotary_logits_depend_on_the_distance_alone():
    rotary, q, k = Rotary(8), randn(1, 1, 1, 8), randn(1, 1, 1, 8, seed=1)
    for apart in (0, 1, 5, 300):
        logits = [
            (rotary.turn(q, start + apart) @ rotary.turn(k, start).mT).item() for start in (0, 3, 100, 5000)
        ]
        assert logits == pytest.approx([logits[0]] * 4, abs=1e-9)
    assert not torch.allclose(rotary.turn(q, 1) @ k.mT, q @ k.mT)


def test_rotary_turns_each_pair_by_its_own_angle():
    rotary, x = Rotary(6, base=100.0), randn(2, 3, 5, 6)
    turned = rotary.turn(x, offset=7)
    for at in range(5):
        for pair in range(3):
            angle = torch.tensor((7 + at) * 100.0 ** (-pair / 3), dtype=torch.float64)
            turn = torch.polar(torch.ones((), dtype=torch.float64), angle)
            expected = torch.complex(x[:, :, at, pair], x[:, :, at, pair + 3]) * turn
            torch.testing.assert_close(turned[:, :, at, pair], expected.real, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(turned[:, :, at, pair + 3], expected.imag, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=1e-12)


def test_rotary_keeps_position_zero_and_continues_at_an_offset():
    rotary, x = Rotary(4), randn(1, 2, 9, 4)
    torch.testing.assert_close(rotary.turn(x)[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(
        rotary.turn(x)[:, :, 4:], rotary.turn(x[:, :, 4:], offset=4), rtol=1e-12, atol=1e-12
    )


def test_rotary_angles_are_exact_in_half_precision():
    x = torch.ones(1, 1, 1, 4)
    exact, half = Rotary(4).turn(x, 10_000), Rotary(4).turn(x.bfloat16(), 10_000)
    torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.02)


def test_alibi_slopes_of_the_paper():
    assert alibi_slopes(8) == [2.0**-k for k in range(1, 9)]
    assert alibi_slopes(1) == [2.0**-8]
    assert alibi_slopes(16) == pytest.approx([2 ** (-k / 2) for k in range(1, 17)])


@pytest.mark.parametrize("heads", [3, 5, 6, 12, 20])
def test_alibi_slopes_of_other_head_counts_interleave_the_next_power(heads):
    whole = 1 << (heads.bit_length() - 1)
    following = alibi_slopes(2 * whole)
    assert alibi_slopes(heads) == pytest.approx(alibi_slopes(whole) + following[::2][: heads - whole])
    assert len(set(alibi_slopes(heads))) == heads


def test_alibi_penalises_distance():
    block = Alibi(2).double().block(torch.tensor([3, 4]), torch.arange(6))
    assert block.shape == (2, 2, 6)
    assert block[0, 0].tolist() == [-(2.0**-4) * abs(3 - j) for j in range(6)]
    assert block[1, 1].tolist() == [-(2.0**-8) * abs(4 - j) for j in range(6)]
    assert not Alibi(2).state_dict()


def bucket(apart: int, *, causal: bool, buckets: int = 32, farthest: int = 128) -> int:
    """T5's bucket of a query `apart` positions behind its key."""
    first = 0
    if not causal:
        buckets //= 2
        first = buckets if apart < 0 else 0
        apart = abs(apart)
    apart = max(apart, 0)
    exact = buckets // 2
    if apart < exact:
        return first + apart
    far = exact + int(log(apart / exact) / log(farthest / exact) * (buckets - exact) + 1e-12)
    return first + min(far, buckets - 1)


@pytest.mark.parametrize("causal", [False, True])
def test_relative_buckets_are_those_of_t5(causal):
    position = RelativeBias(1, causal=causal).double()
    with torch.no_grad():
        position.table.copy_(torch.arange(32.0)[:, None])
    apart = list(range(-300, 301))
    block = position.block(torch.tensor([300]), 300 - torch.tensor(apart))[0, 0]
    assert block.tolist() == [bucket(each, causal=causal) for each in apart]
    assert sorted(set(block.tolist())) == list(range(0, 32)) or not causal


def test_relative_bias_has_a_number_a_head_and_learns():
    position = RelativeBias(3, causal=True)
    block = position.block(torch.arange(4), torch.arange(4))
    assert block.shape == (3, 4, 4)
    torch.testing.assert_close(block[:, 2, 0], position.table[2])
    block[1, 3, 2].backward()
    assert position.table.grad.nonzero().tolist() == [[1, 1]]


def test_learned_is_added_to_the_input_and_ends_where_it_ends():
    position, x = Learned(4, 6).double(), randn(2, 3, 4)
    torch.testing.assert_close(position.embed(x, 2), x + position.table[2:5])
    assert position.embed(x, 3).shape == x.shape
    with pytest.raises(
        ValueError, match="the sequence reaches length 7, but max_length=6 positions are learned"
    ):
        position.embed(x, 4)


def test_none_does_nothing():
    position, x = Position(), randn(1, 2, 3, 4)
    assert position.turn(x) is x and position.embed(x) is x
    assert not position.biases and not position.relates and not list(position.parameters())


def make(kind, **own):
    shape = dict(dim=8, heads=2, head_dim=4, causal=True, max_length=None)
    return make_position(kind, **(shape | own))


def test_positions_by_name():
    assert type(make("none")) is type(make(None)) is Position
    assert isinstance(make("rotary"), Rotary) and isinstance(make("alibi"), Alibi)
    assert make("relative").causal and not make("relative", causal=False).causal
    assert make("learned", max_length=9).table.shape == (9, 8)
    own = Rotary(4, base=500.0)
    assert make(own) is own
    assert all(isinstance(make(kind, max_length=3), nn.Module) for kind in ("none", "rotary", "learned"))


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda: make("rotary", head_dim=3), "head_dim is 3, but rotary positions turn pairs: make it even"),
        (lambda: make("learned"), "position='learned' needs max_length"),
        (lambda: make("learned", max_length=0), "max_length is 0"),
        (lambda: make("rotery"), "no position is called 'rotery'; the nearest are rotary"),
    ],
)
def test_bad_input_is_one_sentence(broken, sentence):
    with pytest.raises(ValueError, match=sentence):
        broken()
