"""Heads that see alike run together."""

import pytest
import torch

from regardant.core import plan
from regardant.core.head_groups import HeadGroupsRule, head_groups, shared_heads, take_heads
from regardant.core.pattern import Blocks, Causal, Padding, PerHead, Sink, Window, both
from regardant.core.position import make_position
from regardant.core.rule import HeadShape

NEAR, FAR = Sink(2) | Window(3), Sink(2) | Window(20)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_heads_are_grouped_by_what_they_see():
    groups = head_groups(Causal() & PerHead([NEAR, FAR, Sink(2) | Window(3), FAR]), 4)
    assert [group.heads for group in groups] == [(0, 2), (1, 3)]
    assert [group.pattern for group in groups] == [Causal() & NEAR, Causal() & FAR]
    several = head_groups(both(PerHead([NEAR, FAR, NEAR]), PerHead([Blocks(4), Blocks(4), Blocks(2)])), 3)
    assert [group.heads for group in several] == [(0,), (1,), (2,)]


def test_heads_that_differ_inside_a_union_stay_together():
    union = PerHead([NEAR, FAR]) | Blocks(4)
    assert [group.heads for group in head_groups(PerHead([NEAR, FAR]) & union, 2)] == [(0, 1)]
    assert [group.pattern for group in head_groups(None, 2)] == [None]


@pytest.mark.parametrize(
    ("heads", "times", "keys"),
    [
        ((0, 1), 2, [0]),
        ((0, 2), 2, [0, 1]),
        ((0, 1, 2, 3), 2, [0, 1]),
        ((0, 1, 2), 2, [0, 0, 1]),
        ((3,), 1, [3]),
    ],
)
def test_key_heads_are_taken_once_where_their_order_allows(heads, times, keys):
    assert shared_heads(heads, times) == keys


def test_neighbouring_heads_are_not_copied():
    x = drawn(2, 5, 3)
    assert take_heads(x, [1, 2, 3]).data_ptr() == x[:, 1].data_ptr()
    torch.testing.assert_close(take_heads(x, [4, 0]), x[:, [4, 0]])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("position", ["none", "alibi", "relative"])
def test_groups_give_what_one_pattern_gives(kv_heads, position):
    bias = make_position(position, dim=32, heads=4, head_dim=8, causal=True, max_length=None).double()
    rule = HeadGroupsRule(bias=bias if bias.biases else None)
    q, (k, v) = drawn(2, 4, 41, 8).requires_grad_(), drawn(2, 2, kv_heads, 41, 8, seed=1)
    real = torch.rand(2, 41, generator=torch.Generator().manual_seed(2)) < 0.8
    pattern = both(Causal(), PerHead([NEAR, FAR, FAR, NEAR]), Padding(real))
    ours, plain = rule(q, k, v, pattern=pattern), rule.reference(q, k, v, pattern=pattern)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(plain)
    one, other = (torch.autograd.grad((out * weight).sum(), q)[0] for out in (ours, plain))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_decoding_keeps_for_each_group_what_it_sees(kv_heads):
    q, (k, v) = drawn(1, 4, 60, 8), drawn(2, 1, kv_heads, 60, 8, seed=1)
    pattern = Causal() & PerHead([NEAR, NEAR, FAR, FAR])
    rule, outs = HeadGroupsRule(), []
    shape = HeadShape(1, 4, kv_heads, 8, 8, torch.device("cpu"), torch.float64)
    state = rule.start(shape, pattern=pattern, keys=k[:, :, :30], values=v[:, :, :30])
    for t in range(30, 60):
        out, state = rule.step(q[:, :, t], k[:, :, t], v[:, :, t], state, pattern=pattern)
        outs.append(out)
    whole = plan.attend_dense(q, k, v, pattern)
    torch.testing.assert_close(torch.stack(outs, 2), whole[:, :, 30:], rtol=0, atol=1e-9)
    rows = kv_heads // 2 * (3 + 2 + 20 + 2)  # keys of the windows and the sinks
    assert state.nbytes == 2 * rows * 8 * 8 and state.length == 60


def test_a_wrong_number_of_patterns_is_said():
    with pytest.raises(ValueError, match="PerHead has 2 patterns, but there are 3 heads"):
        head_groups(PerHead([NEAR, FAR]), 3)
