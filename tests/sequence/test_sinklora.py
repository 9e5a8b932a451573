"""Sink-fixed shifted sparse attention."""

import pytest
import torch

from regardant.core import plan
from regardant.sequence.sinklora import ShiftedBlocks, SinkFixedAttention
from regardant.sequence.softmax import Softmax


def layer(causal=True, heads=4, seed=0, **config):
    torch.manual_seed(seed)
    return SinkFixedAttention(32, heads, causal=causal, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mask_of(attention, n):
    return attention.visible(n, across=False, padding=None).dense(n, heads=attention.heads)


def test_heads_see_their_group_and_the_sinks():
    mask = mask_of(layer(group=4, sinks=1), 9).int()
    assert mask[0].tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 1, 1, 1, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
    assert mask[3].tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0, 0, 0],
        [1, 0, 1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 1, 1, 0, 0, 0, 0],
        [1, 0, 1, 1, 1, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert torch.equal(mask[0], mask[1]) and torch.equal(mask[0], mask[2])


@pytest.mark.parametrize(
    ("heads", "unshifted", "count"), [(8, 0.5, 2), (8, 0, 4), (8, 1, 0), (4, 0.5, 1), (1, 0.5, 0)]
)
def test_a_share_of_the_shifted_half_goes_back(heads, unshifted, count):
    assert layer(heads=heads, unshifted=unshifted).shifted_heads == count


@pytest.mark.parametrize("n", [1, 2, 17, 64, 257])
@pytest.mark.parametrize("config", [{}, {"group": 8}, {"group": 16, "unshifted": 0.0, "sinks": 0}])
@pytest.mark.parametrize("causal", [False, True])
def test_forward_is_the_masked_equation(n, config, causal):
    attention, x = layer(causal, kv_heads=2, **config), inputs(n)
    torch.testing.assert_close(attention(x), attention.reference(x), rtol=0, atol=1e-9)


def test_groups_cut_into_bands_are_the_masked_equation():
    attention = layer(group=64)
    q, k, v = torch.randn(3, 1, 4, 700, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pattern = attention.visible(700, across=False, padding=None)
    torch.testing.assert_close(
        attention.rule(q, k, v, pattern=pattern), plan.attend_dense(q, k, v, pattern), rtol=0, atol=1e-9
    )


def test_one_group_for_all_is_softmax_attention():
    torch.manual_seed(0)
    softmax, x = Softmax(32, 4, causal=True, position="rotary").double(), inputs(50)
    attention = SinkFixedAttention.from_dense(softmax, group=64, unshifted=1.0)
    torch.testing.assert_close(attention(x), softmax(x), rtol=0, atol=1e-12)


def test_trained_weights_go_back_into_softmax_attention():
    attention, softmax = layer(group=8), Softmax(32, 4, causal=True).double()
    softmax.load_state_dict(attention.state_dict())
    torch.testing.assert_close(
        softmax(inputs(8))[:, :4], attention.from_dense(softmax, group=8)(inputs(8))[:, :4]
    )


def test_sinks_are_seen_from_every_group_and_nothing_else_of_theirs_is():
    attention, x = layer(group=8, unshifted=1.0, sinks=2), inputs(40)
    y = attention(x)
    for position, seen in ((1, True), (2, False)):
        changed = x.clone()
        changed[:, position] += 1
        moved = (attention(changed) - y).abs().amax((0, 2))[8:] > 1e-9
        assert moved.all() if seen else not moved.any()


@pytest.mark.parametrize("n", [1, 9, 40])
def test_stepping_equals_forward_and_keeps_one_group_and_the_sinks(n):
    attention, x = layer(group=8), inputs(n)
    with torch.no_grad():
        state, outs = attention.start(2), []
        for t in range(n):
            y, state = attention.step(x[:, t], state)
            outs.append(y)
        torch.testing.assert_close(torch.stack(outs, 1), attention(x), rtol=0, atol=1e-9)
    if n == 40:
        assert state.nbytes == 2 * 2 * 4 * (8 + 4) * 8 * 8


def test_pitfall_the_first_tokens_do_not_see_the_end_through_the_shift():
    attention, x = layer(group=8, unshifted=0.0, sinks=0), inputs(32)
    changed = x.clone()
    changed[:, 28:] = 7.0
    torch.testing.assert_close(attention(x)[:, :28], attention(changed)[:, :28], rtol=0, atol=1e-12)
    assert not mask_of(attention, 32)[3, :4, 4:].any()  # rolled, they would share a group with 28 … 31


@pytest.mark.parametrize("n", [7, 15, 17])
def test_pitfall_no_length_has_to_be_a_multiple_of_the_group(n):
    attention, x = layer(group=8), inputs(32)
    torch.testing.assert_close(attention(x[:, :n]), attention(x)[:, :n], rtol=0, atol=1e-9)


def test_pitfall_groups_are_not_written_in_place():
    attention, x = layer(group=8), inputs(32).requires_grad_()
    before = x.detach().clone()
    (gradient,) = torch.autograd.grad(attention(x).square().sum(), x)
    (plain,) = torch.autograd.grad(attention.reference(x).square().sum(), x)
    torch.testing.assert_close(gradient, plain, rtol=0, atol=1e-9)
    assert torch.equal(x, before)


def test_the_cost_of_training_is_a_group_a_token():
    attention, n = layer(group=512), 2048
    computed = attention.explain(n).pairs
    assert computed < 0.35 * n * n


@pytest.mark.parametrize("config", [{"group": 7}, {"group": 0}, {"unshifted": 1.5}, {"sinks": -1}])
def test_bad_configuration_says_what_would_be_right(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        layer(**config)


def test_shifted_blocks_tell_how_far_they_reach():
    i = torch.arange(40)
    apart = (i[:, None] - i)[ShiftedBlocks(8, 4).block(i, i)[0, 0]]
    assert apart.max() == ShiftedBlocks(8, 4).reach().back == -apart.min() == 7
