"""MoA's search: influence against autograd and against dropping entries, plans against trying all, spans at
work."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import pytest
import torch

from regardant.core.elastic_spans import span_blocks, span_pairs, span_pattern
from regardant.core.pattern import Causal
from regardant.edit.apply import apply
from regardant.edit.language.attention_influence import AttentionInfluence, by_key_head, influence
from regardant.edit.language.elastic_spans import ElasticSpans
from regardant.edit.language.key_choice import KeyChoice
from regardant.edit.language.span_plan import SpanPlan, candidates, left_out, plans
from regardant.host.run import Run
from regardant.world.families import FAMILIES
from tests.edit.language.texts import read, site, text

pytestmark = pytest.mark.filterwarnings("ignore")

APART = SpanPlan((((4, 0.0), (12, 0.0)),), block=4)
PLANS = [APART, SpanPlan((((0, 0.25), (-4, 0.5)),), block=4), SpanPlan((((3, 0.0),),), block=1)]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 9, 37])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_heads_are_softmax_over_their_spans(plan, length):
    edit, whole = ElasticSpans(plan=plan), text(length)
    expected = KeyChoice.mix(edit, whole, site(0), Run())
    torch.testing.assert_close(read(edit, whole), expected, atol=1e-9, rtol=0)
    seen = edit.seen(whole, site(0))
    assert not (seen & ~whole.earlier()).any()
    assert float(seen.double().mean((0, 1)).sum()) / (length * (length + 1) / 2) == pytest.approx(
        plan.density(length)
    )


def test_decoding_goes_on_with_the_prompts_spans():
    whole = text(60)
    elastic = ElasticSpans(plan=PLANS[1])
    fixed = ElasticSpans(plan=PLANS[1], length=30)
    ends = [30, *range(31, 61)]
    torch.testing.assert_close(read(elastic, whole, ends), read(fixed, whole), atol=1e-9, rtol=0)
    frozen = ElasticSpans(plan=PLANS[1].frozen(30))
    torch.testing.assert_close(read(frozen, whole), read(fixed, whole), atol=0, rtol=0)


def test_pitfall_density_counts_sinks_and_is_that_of_the_pattern():
    for block, count, length in product((1, 4), (1, 3, 50), (1, 10, 33)):
        pattern = Causal() & span_pattern(count, block=block)
        assert span_pairs(count, block=block, length=length) == int(pattern.dense(length).sum())


def test_influence_is_the_loss_of_dropping_an_entry_to_first_order():
    """A smooth loss of the weights; an entry small enough, dropped, the rest divided by what is left."""
    logits = drawn(1, 6, 9) * 2
    target = drawn(1, 6, 9, seed=1)
    weights = logits.softmax(-1).requires_grad_()

    def loss(a):
        return (a * target).sum() + 0.1 * (a**2 * target).sum()

    gradient = torch.autograd.grad(loss(weights), weights)[0]
    weights = weights.detach()
    found = influence(weights, gradient)
    for row, entry in product(range(6), range(9)):
        if float(weights[0, row, entry]) > 0.02:
            continue
        dropped = weights.clone()
        dropped[0, row, entry] = 0
        dropped[0, row] /= dropped[0, row].sum()
        assert float(loss(dropped) - loss(weights)) == pytest.approx(
            float(found[0, row, entry]), rel=0.15, abs=1e-4
        )


def test_pitfall_rows_of_one_entry_stay_finite():
    weights = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]], dtype=torch.float64)
    gradient = torch.tensor([[[2.0, 5.0], [1.0, 3.0]]], dtype=torch.float64)
    found = influence(weights, gradient)
    mean = 0.4 * 1 + 0.6 * 3
    expected = [[-2.0, 0.0], [0.4 / 0.6 * (mean - 1), 0.6 / 0.4 * (mean - 3)]]
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_the_profile_is_autograds_through_eager_weights():
    """The gradient of the heads, taken on to the weights, is the gradient of the weights themselves."""
    fused, eager = FAMILIES["llama"].make(), FAMILIES["llama"].make(attention="eager")
    ids = FAMILIES["llama"].inputs(batch=1, length=13)["input_ids"]
    labels = torch.full_like(ids, -100)
    labels[:, 6:] = torch.randint(3, 90, (1, 7), generator=torch.Generator().manual_seed(1))
    found = AttentionInfluence(block=4).measure(fused, [(ids, labels)])
    output = eager(input_ids=ids, output_attentions=True, use_cache=False)
    loss = torch.nn.functional.cross_entropy(output.logits[0], labels[0], ignore_index=-100)
    grads = torch.autograd.grad(loss, output.attentions)
    for layer, (weights, gradient) in enumerate(zip(output.attentions, grads)):
        effect = torch.nn.functional.pad(influence(weights.detach(), gradient)[0], (0, 3, 0, 3))
        expected = effect.abs().view(4, 4, 4, 4, 4).sum((2, 4))
        torch.testing.assert_close(found[layer], expected, atol=2e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in fused.parameters())


def test_pitfall_signed_influences_cancel_so_plans_go_by_sizes():
    """Of a whole row, the entries by their sizes: with signs their sum says nothing of what they do."""
    model, inputs = FAMILIES["llama"].make(), FAMILIES["llama"].inputs(batch=1, length=8)["input_ids"]
    labels = inputs.roll(-1)
    single = AttentionInfluence(block=1).measure(model, [(inputs, labels)])
    whole = AttentionInfluence(block=8).measure(model, [(inputs, labels)])
    torch.testing.assert_close(whole, single.sum((-1, -2), keepdim=True))
    assert (single >= 0).all() and not single.triu(1).any()


def test_of_heads_that_share_keys_the_largest_influence_counts():
    tiles = torch.tensor([3.0, 1.0, 1.0, 2.0]).view(1, 4, 1, 1)
    assert by_key_head(tiles, kv_heads=2).flatten().tolist() == [3.0, 2.0]


def test_the_influence_of_few_small_entries_together_is_the_sum_of_theirs():
    """To first order they add up: a tenth of each of many entries, taken away at once."""
    weights = (drawn(1, 5, 40) * 0.5).softmax(-1)
    gradient = drawn(1, 5, 40, seed=1)
    out = torch.arange(40) < 20
    kept = torch.where(out, weights * (1 - 1e-4), weights)
    kept = kept / kept.sum(-1, keepdim=True)
    found = float((gradient * (kept - weights)).sum()) / 1e-4
    effect = influence(weights, gradient) * (1 - weights)
    assert found == pytest.approx(float((effect * out).sum()), rel=1e-3)


@pytest.mark.parametrize("lengths", [(16,), (8, 16)])
@pytest.mark.parametrize("distinct", [1, 2])
def test_plans_are_the_best_of_all(lengths, distinct):
    """Two layers of three heads: every assignment tried."""
    block, heads = 2, 3
    rules = [(2, 0.0), (4, 0.0), (8, 0.0), (0, 0.5)]
    influences = {n: drawn(2, heads, n // block, n // block, seed=n).abs() for n in lengths}
    bounds = {n: SpanPlan((((5, 0.0),),), block).density(n) for n in lengths}
    found = plans(influences, rules, bounds, block=block, distinct=distinct)

    def losses(layers):
        spans = {
            n: [[span_blocks(*rule, block=block, length=n) for rule in layer] for layer in layers]
            for n in lengths
        }
        return tuple(
            sum(
                float(left_out(influences[n], span)[layer, head])
                for layer, own in enumerate(spans[n]) for head, span in enumerate(own)
            )
            for n in lengths
        )  # fmt: skip

    layers = [each for each in product(rules, repeat=heads) if len(set(each)) <= distinct]
    everything = [
        pair for pair in product(layers, repeat=2)
        if all(SpanPlan(pair, block).density(n) <= bounds[n] + 1e-12 for n in lengths)
    ]  # fmt: skip
    least = [min(losses(pair)[place] for pair in everything) for place in range(len(lengths))]
    for place, best in enumerate(least):
        assert min(losses(plan.rules)[place] for plan in found) == pytest.approx(best, rel=0.03)
    for plan in found:
        assert all(plan.density(n) <= bounds[n] + 1e-9 for n in lengths)
        assert all(len(set(layer)) <= distinct for layer in plan.rules)


def test_candidates_fit_at_all_lengths():
    found = candidates(block=4, lengths=(16, 32), step=8, shares=4)
    assert (16, 0.0) in found and (0, 0.5) in found and (0, 1.0) in found
    assert all(4 <= alpha + beta * n <= n for alpha, beta in found for n in (16, 32))
    assert len(set(found)) == len(found)
    assert not any(a == b for a, b in combinations_with_replacement(found, 2) if a is not b)


@torch.no_grad()
def test_plans_and_models_that_do_not_fit_are_refused():
    llama = FAMILIES["llama"].make()
    three = SpanPlan((((4, 0.0),) * 3,) * 4)
    with pytest.raises(ValueError, match="has 3 rules for layer 0, but that has 2 key heads"):
        apply(llama, ElasticSpans(plan=three))
    with pytest.raises(ValueError, match="the plan has 2 layers, but layer 2"):
        apply(llama, ElasticSpans(plan=SpanPlan((((4, 0.0),),) * 2)))
    tiles = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match="smallest rules see"):
        plans({8: tiles}, [(8, 0.0)], {8: 0.2}, block=2)
    with pytest.raises(ValueError, match="bounds is for"):
        plans({8: tiles}, [(2, 0.0)], {16: 0.2}, block=2)
    with pytest.raises(ValueError, match="texts is empty"):
        AttentionInfluence().measure(llama, [])
