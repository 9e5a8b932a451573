"""The search over architectures: space, shared weights, ranker, evolution, operations."""

import random
from functools import partial

import pytest
import torch

from regardant.core.mixer import MultiHead
from regardant.sequence.cosformer import CosFormer
from regardant.train.fit import seeded
from regardant.train.nas_efficient_transformers import (
    MixedAttentionSearch,
    PairwiseRanker,
    SuperNet,
    evolve,
)
from regardant.train.search_space import Architecture, Layer, SearchSpace


def space(length: int = 8, **options) -> SearchSpace:
    kinds = {
        "softmax": partial(MultiHead, causal=True),
        "cosformer": partial(CosFormer, causal=True, max_length=length),
    }
    given = dict(vocabulary=7, length=length, depth=2, widths=(8, 12), heads=(2, 4), hiddens=(6, 10))
    return SearchSpace(kinds, **(given | options))


def supernet(**options) -> SuperNet:
    with seeded(0):
        return SuperNet(space(**options), seed=0).double()


def one_of(
    attention: str, *, width: int = 8, heads: int = 2, hidden: int = 6, depth: int = 2
) -> Architecture:
    return Architecture(width, (Layer(attention, heads, hidden),) * depth)


def test_an_architecture_inherits_the_first_rows_and_columns():
    net, one = supernet(), one_of("cosformer")
    alone = net.space.network(one).double()
    weights = net.inherited(alone)
    shared = net.shared.blocks[1]
    query = weights["blocks.1.mixers.cosformer.to_q.weight"]
    assert torch.equal(query, shared.mixers["cosformer"].to_q.weight[:8, :8])
    assert torch.equal(weights["blocks.1.mlp.1.weight"], shared.mlp[1].weight[:6, :8])
    assert torch.equal(weights["embedding.weight"], net.shared.embedding.weight[:, :8])
    alone.load_state_dict(weights)
    tokens = torch.randint(7, (2, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.run(one, tokens), alone(tokens))


def test_training_moves_what_an_architecture_uses_and_nothing_else():
    net = supernet()
    tokens = torch.randint(7, (2, 8), generator=torch.Generator().manual_seed(0))
    net.run(one_of("softmax"), tokens).square().sum().backward()
    gradients = {name: weight.grad for name, weight in net.shared.named_parameters()}
    used = gradients["blocks.0.mixers.softmax.to_v.weight"]
    assert used[:8, :8].abs().min() > 0
    assert not used[8:].any()
    assert not used[:, 8:].any()
    assert gradients["blocks.0.mixers.cosformer.to_v.weight"] is None


def test_each_step_of_training_is_another_architecture():
    net, tokens = supernet().train(), torch.zeros(1, 8, dtype=torch.long)
    outputs = [net(tokens) for _ in range(6)]
    assert len({float(output.detach().sum()) for output in outputs}) > 3
    net.eval()
    with pytest.raises(ValueError, match="chosen is None"):
        net(tokens)
    net.chosen = one_of("softmax")
    assert torch.equal(net(tokens), net.run(one_of("softmax"), tokens))


def test_a_subnetwork_leaves_the_global_generator_alone():
    net, tokens = supernet(), torch.zeros(1, 8, dtype=torch.long)
    before = torch.get_rng_state()
    net.run(one_of("softmax"), tokens)
    net.space.operations(one_of("softmax"))
    assert torch.equal(before, torch.get_rng_state())


def test_pitfall_kinds_of_attention_share_neither_projections_nor_norms():
    block = supernet().shared.blocks[0]
    owned = {
        kind: {
            weight.data_ptr() for part in (block.mixers, block.norms) for weight in part[kind].parameters()
        }
        for kind in ("softmax", "cosformer")
    }
    assert owned["softmax"] and owned["cosformer"]
    assert not owned["softmax"] & owned["cosformer"]


def test_pitfall_features_that_are_all_zero():
    model = space().network(one_of("cosformer")).double()
    tokens = torch.randint(7, (2, 8), generator=torch.Generator().manual_seed(0))
    for block in model.blocks:
        block.norms["cosformer"].weight.data.zero_()
        block.norms["cosformer"].bias.data.fill_(1.0)
        block.mixers["cosformer"].to_q.weight.data.fill_(-1.0)  # no query has a positive part
    assert model(tokens).isfinite().all()


def test_pitfall_linear_attention_costs_more_where_sequences_are_short():
    work = {
        (kind, length): space(length, depth=1, widths=(64,), heads=(2,)).operations(
            one_of(kind, width=64, depth=1)
        )
        for kind in ("softmax", "cosformer")
        for length in (16, 1024)
    }
    assert work["cosformer", 16] > work["softmax", 16]
    assert work["cosformer", 1024] < work["softmax", 1024]


def test_pitfall_operations_are_those_at_the_length_of_use():
    found = [space(length, depth=1).operations(one_of("softmax", depth=1)) for length in (16, 32)]
    constant = 2 * (4 * 8 * 8 + 2 * 8 * 6 + 8 * 7)
    assert found == [16 * constant + 4 * 16**2 * 8, 32 * constant + 4 * 32**2 * 8]


def test_pitfall_the_cosine_reaches_as_far_as_the_space_is_long():
    with pytest.raises(ValueError, match="max_length=4 is as far as the cosine is positive"):
        space(8).network(one_of("cosformer")).blocks[0].mixers["cosformer"].__class__(
            8, 2, causal=True, max_length=4
        )(torch.zeros(1, 8, 8))


def test_the_ranker_learns_an_order_and_counts_its_pairs():
    here, dice = space(), random.Random(0)
    measured = [
        (one, 1.0 if "cosformer" in one.attentions else 0.5)
        for one in map(lambda _: here.draw(dice), range(40))
    ]
    ranker = PairwiseRanker(here)
    ranker.fit(measured)
    assert ranker.score(one_of("softmax")) > ranker.score(one_of("cosformer"))
    trio = [(one_of("softmax"), 0.1), (one_of("cosformer"), 0.9), (one_of("cosformer", width=12), 0.05)]
    # Right: softmax before the first cosformer. Whatever the two cosformers' order, the last pair is wrong.
    right = ranker.score(trio[2][0]) > ranker.score(trio[1][0])
    assert ranker.accuracy(trio) == pytest.approx((1 + right) / 3)


def test_evolution_keeps_to_its_limit():
    here = space()
    found = evolve(
        here, lambda one: one.width + sum(layer.hidden for layer in one.layers), random.Random(0),
        cost=lambda one: sum(layer.hidden for layer in one.layers), limit=16,
    )  # fmt: skip
    assert (found.width, sorted(layer.hidden for layer in found.layers)) == (12, [6, 10])


def test_a_search_finds_each_kind_and_the_mixture():
    net = supernet()
    finder = MixedAttentionSearch(net, seed=0)

    def loss(one: Architecture) -> float:
        # Softmax is worth most in the first layer; elsewhere cosformer is as good.
        return (one.layers[0].attention != "softmax") + 0.01 * (one.layers[1].attention == "softmax")

    finder.ranker.fit(finder.measure(loss, 40))
    assert finder.find(attention=["softmax"]).attentions == ("softmax", "softmax")
    assert finder.find(attention=["cosformer"]).attentions == ("cosformer", "cosformer")
    assert finder.find().attentions == ("softmax", "cosformer")


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: space(widths=(10,)), r"widths holds \[10\], which heads=\(2, 4\) do not all divide"),
        (lambda: space(heads=()), "heads is empty"),
        (lambda: space(depth=0), "depth is 0"),
        (lambda: space().only("softmx"), "no attention is called 'softmx'; the nearest are softmax"),
        (lambda: PairwiseRanker(space()).score(one_of("softmax")), "the ranker has learned nothing yet"),
        (lambda: PairwiseRanker(space()).fit([]), "measured has 0 architectures"),
        (lambda: PairwiseRanker(space(), ridge=0.0), "ridge is 0.0"),
        (lambda: evolve(space(), lambda one: 0.0, random.Random(0), limit=3), "no cost is given"),
        (
            lambda: evolve(space(), lambda one: 0.0, random.Random(0), cost=lambda one: 5, limit=3),
            "limit is 3, but of the architectures that were drawn none costs so little",
        ),
    ],
)
def test_bad_input_gets_one_sentence(act, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        act()
    assert "\n" not in str(raised.value)
