"""Spans that differ by head and grow with the length."""

import pytest
import torch

from regardant.core import plan
from regardant.core.elastic_spans import BlockWindow
from regardant.sequence.moa_mixture_of_sparse_attention import MixtureOfSparseAttention
from regardant.sequence.softmax import Softmax


def layer(causal=True, seed=0, **config):
    torch.manual_seed(seed)
    return MixtureOfSparseAttention(32, 4, causal=causal, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_head_sees_the_first_block_and_its_span_of_blocks():
    mask = layer(alpha=[2, 4, 2, 8], block=2).visible(7, across=False, padding=None).dense(7, heads=4)
    assert mask[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]
    assert mask[1, 6].int().tolist() == [1, 1, 0, 0, 1, 1, 1]
    assert torch.equal(mask[0], mask[2]) and mask[3].sum() == 28


@pytest.mark.parametrize("n", [1, 2, 17, 64, 257])
@pytest.mark.parametrize(
    "config", [{}, {"block": 1, "alpha": [1, 3, 9, 27]}, {"beta": [0, 0.25, 0.5, 1.0], "block": 8}]
)
@pytest.mark.parametrize("causal", [False, True])
def test_forward_is_the_masked_equation(n, config, causal):
    mixed, x = layer(causal, **config), inputs(n)
    torch.testing.assert_close(mixed(x), mixed.reference(x), rtol=0, atol=1e-9)


def test_groups_of_heads_cut_into_bands_are_the_masked_equation():
    mixed = layer(alpha=[16, 16, 64, 128], block=16)
    q, k, v = torch.randn(3, 1, 4, 700, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pattern = mixed.visible(700, across=False, padding=None)
    torch.testing.assert_close(
        mixed.rule(q, k, v, pattern=pattern), plan.attend_dense(q, k, v, pattern), rtol=0, atol=1e-9
    )


def test_spans_grow_with_the_length_each_by_its_own_share():
    mixed = layer(alpha=[0, 64, 64, 128], beta=[0, 0, 0.25, 0.5], block=64)
    assert mixed.blocks(512) == [1, 1, 3, 6]
    assert mixed.blocks(1024) == [1, 1, 5, 10]
    assert layer(alpha=0, beta=1.0, block=8).blocks(50) == [7] * 4


def test_a_span_of_the_whole_length_is_softmax_attention():
    torch.manual_seed(0)
    softmax, x = Softmax(32, 4, causal=True, kv_heads=2, position="rotary").double(), inputs(100)
    mixed = MixtureOfSparseAttention.from_dense(softmax, beta=1.0, block=16)
    torch.testing.assert_close(mixed(x), softmax(x), rtol=0, atol=1e-12)


def test_stepping_goes_on_with_the_spans_of_the_planned_length():
    mixed, x = layer(alpha=[0, 8, 8, 16], beta=[0, 0, 0.25, 0.5], block=4, length=40, kv_heads=2), inputs(40)
    with torch.no_grad():
        y, state = mixed.prefill(x[:, :13])
        outs = [y]
        for t in range(13, 40):
            y, state = mixed.step(x[:, t], state)
            outs.append(y[:, None])
        torch.testing.assert_close(torch.cat(outs, 1), mixed(x), rtol=0, atol=1e-9)


def test_decoding_keeps_the_mean_span_and_the_sinks():
    mixed = layer(alpha=[8, 8, 16, 64], block=8)
    _, state = mixed.prefill(inputs(200, batch=1))
    assert state.nbytes == 2 * 8 * 8 * (8 + 8 + 16 + 64 + 4 * 8)


def test_the_cost_is_that_of_the_mean_span_not_of_the_widest():
    way = layer(alpha=[64, 64, 64, 1024], block=64).explain(4096)
    widest = layer(alpha=1024, block=64).explain(4096)
    assert way.name == "banded" and way.pairs < 0.45 * widest.pairs
    assert "2 groups of heads" in way.reason


def test_pitfall_plans_are_compared_at_the_same_mean_span_sinks_included():
    mixed, n = layer(alpha=[2, 4, 2, 8], block=2), 7
    mask = mixed.visible(n, across=False, padding=None).dense(n, heads=4)
    assert mixed.density(n) == pytest.approx(float(mask.sum()) / (4 * 28))
    assert layer(alpha=8, block=8).density(8) == 1.0
    assert layer(alpha=1, block=1).density(4) == pytest.approx((1 + 2 + 2 + 2) / 10)


def test_pitfall_spans_that_no_step_can_know_are_refused():
    with pytest.raises(ValueError, match="give length"):
        layer(beta=0.5).start(1)


def test_pitfall_the_name_says_the_mask_and_nothing_is_routed():
    mixed = layer()
    assert set(dict(mixed.named_parameters())) == set(dict(Softmax(32, 4).named_parameters()))


@pytest.mark.parametrize(
    "config", [{"block": 0}, {"alpha": [1, 2]}, {"alpha": -1}, {"beta": [0.5]}, {"length": 0}]
)  # fmt: skip
def test_bad_configuration_says_what_would_be_right(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        layer(**config)


def test_blocks_tell_how_far_they_reach():
    i = torch.arange(50)
    mask = BlockWindow(4, 3).block(i, i)[0, 0]
    apart = (i[:, None] - i)[mask]
    assert apart.max() == BlockWindow(4, 3).reach().back == 11
