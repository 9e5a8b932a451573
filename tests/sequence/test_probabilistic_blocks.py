"""Blocks drawn by chance: odds, draws, and the dossier's pitfalls."""

import math

import pytest
import torch

from regardant.core.record import Record
from regardant.sequence.probabilistic_blocks import DrawnBlocks, ProbabilisticBlocks
from regardant.sequence.softmax import Softmax


def layer(seed=0, **own):
    torch.manual_seed(seed)
    return ProbabilisticBlocks(16, 2, **({"causal": True, "size": 4} | own)).double().eval()


def inputs(n, dim=16, seed=1, batch=2):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_blocks_are_drawn_as_often_as_they_should():
    at = torch.arange(200)
    total = torch.zeros(200, 200)
    for seed in range(60):
        total += DrawnBlocks(8, 2.0, "harmonic", seed).drawn(at[:, None], at[None])
    apart = (at[:, None] - at[None]).abs()
    for distance in (0, 1, 2, 5, 20, 100):
        share = (total / 60)[apart == distance].mean()
        expected = min(1.0, 2 / (1 + distance)) if distance else 1.0
        assert share == pytest.approx(expected, abs=0.03)
    rows = (total / 60)[150]
    assert rows[:50].std() < 0.12  # none is favoured


@torch.no_grad()
@pytest.mark.parametrize("correct", [False, True])
def test_a_rate_that_draws_every_block_is_softmax(correct):
    torch.manual_seed(0)
    plain, x = Softmax(16, 2, causal=True).double(), inputs(50)
    ours = ProbabilisticBlocks.from_dense(plain, size=4, rate=1e9, correct=correct).eval()
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=1e-12)


def test_the_pairs_are_n_log_n():
    pairs = []
    for n in (4096, 16384, 65536):
        blocks, at = DrawnBlocks(64, 2.0, "harmonic", 0), torch.arange(n // 64)
        pairs.append(int(blocks.drawn(at[:, None], at[None]).tril().sum()))
        mean = sum(min(1, 2 / (1 + distance)) * (len(at) - distance) for distance in range(len(at)))
        assert pairs[-1] == pytest.approx(mean, rel=0.1)
    assert math.log(pairs[2] / pairs[0], 16) < 1.35


@torch.no_grad()
def test_pitfall_the_correction_brings_sums_to_their_expectation_not_the_fraction():
    """Over many draws the mean of the corrected sums is dense attention's; that of the fraction is near."""
    n, scores = 64, inputs(1, dim=64)[0, 0].exp()
    values = inputs(1, dim=64, seed=5)[0, 0]
    i, j = torch.tensor([n - 1]), torch.arange(n)
    tops, bottoms = [], []
    for seed in range(3000):
        blocks = DrawnBlocks(4, 1.5, "harmonic", seed)
        kept = blocks.allows(i[:, None], j)[0] / blocks.odds((i // 4 - j // 4).abs())
        tops.append((kept * scores * values).sum())
        bottoms.append((kept * scores).sum())
    top, bottom = torch.stack(tops), torch.stack(bottoms)
    error = 4 / 3000**0.5
    assert (top.mean() - (scores * values).sum()).abs() < error * top.std()
    assert (bottom.mean() - scores.sum()).abs() < error * bottom.std()


@torch.no_grad()
def test_pitfall_a_pass_draws_anew_from_the_generator_and_evaluation_does_not():
    made, x = layer(rate=0.5), inputs(60)
    torch.testing.assert_close(made(x), made(x), rtol=0, atol=0)
    record = Record(generator=torch.Generator().manual_seed(3))
    first, second = made(x, record=record), made(x, record=record)
    assert (first - second).abs().max() > 1e-3
    again = made(x, record=Record(generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert len(record.seen["drawn"]) == 2
    made.train()
    assert (made(x) - made(x)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("correct", [False, True])
def test_a_longer_sequence_draws_the_same_blocks_and_so_does_decoding(correct):
    made, x = layer(rate=0.7, correct=correct), inputs(45)
    whole = made(x)
    torch.testing.assert_close(made(x[:, :30]), whole[:, :30], rtol=0, atol=1e-12)
    y, state = made.prefill(x[:, :20])
    for t in range(20, 45):
        y, state = made.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_query_sees_nothing_that_was_not_drawn():
    made, x = layer(rate=0.3, causal=False), inputs(80)
    changed = x.clone()
    changed[:, 40] += 3.0
    moved = (made(x) - made(changed)).abs().amax((0, 2)) > 1e-12
    at = torch.arange(80)
    allowed = made.rule.blocks.allows(at, torch.tensor(40))
    assert torch.equal(moved, allowed)


def test_explain_counts_the_pairs():
    made = layer(size=32)
    plan = made.explain(16_384)
    blocks, at = made.rule.blocks, torch.arange(512)
    assert plan.pairs == int(blocks.drawn(at[:, None], at[None]).tril().sum()) * 32**2
    assert plan.pairs < 0.05 * plan.total
    with pytest.raises(ValueError, match="keys is 7"):
        made.explain(64, keys=7)


@pytest.mark.parametrize(
    ("own", "words"),
    [({"size": 0}, "size is 0"), ({"rate": 0.0}, "rate is 0"), ({"chance": "odd"}, "chance is 'odd'"),
     ({"position": "alibi"}, "position is Alibi")],
)  # fmt: skip
def test_bad_input_is_one_sentence(own, words):
    with pytest.raises(ValueError, match=words):
        layer(**own)
