"""Branch, attend, mix: mixtures made of copies of a language model."""

import pytest
import torch

from regardant.core.averaged import averaged
from regardant.core.record import Record
from regardant.structure.bam_upcycling import ParallelTransformer, SparseFeedForward, upcycle


def made(seed=0, **own):
    torch.manual_seed(seed)
    return ParallelTransformer(13, 16, 2, **own).double()


def tokens(n=9, seed=0):
    return torch.randint(13, (2, n), generator=torch.Generator().manual_seed(seed))


def sparse(seed=0, **own):
    torch.manual_seed(seed)
    return SparseFeedForward(16, 2, **{"experts": 4, "top_k": 1, "balance": 0.5} | own).double()


def vectors(seed=1):
    return torch.randn(2, 15, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_block_reads_the_same_norm_twice():
    model = made(layers=1)
    block, x = model.blocks[0], vectors()
    u = block.norm(x)
    torch.testing.assert_close(block(x), x + block.attention(u) + block.feed_forward(u), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["full", "kv_shared", "btx"])
@pytest.mark.parametrize("position", ["rotary", "relative"])
def test_like_copies_with_all_experts_running_are_the_dense_model(variant, position):
    model = made(kv_heads=1, position=position)
    mixture = upcycle([model] * 3, variant=variant, top_k=3)
    torch.testing.assert_close(mixture(tokens()), model(tokens()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", ["full", "kv_shared", "btx"])
def test_experts_are_the_copies_and_the_rest_is_their_mean(variant):
    copies = [made(seed) for seed in range(3)]
    mixture, middle = upcycle(copies, variant=variant), averaged(copies)
    kept, mean = mixture.state_dict(), middle.state_dict()
    for name in ("embedding.weight", "norm.weight", "head.weight", "blocks.1.norm.bias"):
        torch.testing.assert_close(kept[name], mean[name])
    for at, copy in enumerate(copies):
        own = copy.blocks[1].feed_forward
        torch.testing.assert_close(mixture.blocks[1].feed_forward.experts[at].outer.weight, own.outer.weight)
    u, attention = vectors(), mixture.blocks[0].attention
    if variant == "full":
        share = attention.route(u)
        plain = sum(share[..., at, None] * copy.blocks[0].attention(u) for at, copy in enumerate(copies))
    elif variant == "kv_shared":
        assert attention.to_k.weight.shape == (16, 16)
        plain = attention.reference(u)
    else:
        plain = middle.blocks[0].attention(u)
    torch.testing.assert_close(attention(u), plain, rtol=0, atol=1e-9)


def test_pitfall_unlike_weights_of_attention_those_of_feed_forward_experts_are_not_renormalised():
    model = made(layers=1)
    mixture, u = upcycle([model] * 3), vectors()
    layer = mixture.blocks[0].feed_forward
    top = layer.route(u.flatten(0, 1))[0].amax(-1).view(2, 15, 1)
    torch.testing.assert_close(layer(u), top * model.blocks[0].feed_forward(u), rtol=0, atol=1e-9)
    assert top.max() < 1


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_only_the_chosen_experts_run(top_k):
    layer, u, rows = sparse(top_k=top_k), vectors(), []
    plain = layer.reference(u)
    for expert in layer.experts:
        expert.register_forward_hook(lambda _, given, out: rows.append(len(out)))
    torch.testing.assert_close(layer(u), plain, rtol=0, atol=1e-9)
    assert sum(rows) == 30 * top_k


def test_the_balance_loss_is_that_of_the_feed_forward_router_alone():
    mixture, record = made(experts=3, attention="own", balance=0.5), Record()
    mixture(tokens(), record=record)
    assert set(record.losses) == {"balance"} and len(record.losses["balance"]) == 2
    layer, record, u = sparse(), Record(), vectors()
    layer(u, record=record)
    probability, chosen = layer.route(u.flatten(0, 1))
    load = chosen.flatten().bincount(minlength=4) / 30
    torch.testing.assert_close(record.loss(), 0.5 * 4 * (load * probability.mean(0)).sum())


def test_an_even_load_costs_the_weight_of_the_loss():
    layer, record = sparse(top_k=4), Record()
    torch.nn.init.zeros_(layer.router.weight)
    layer(vectors(), record=record)
    torch.testing.assert_close(record.loss(), torch.tensor(0.5, dtype=torch.float64))


def test_pitfall_averaging_keys_breaks_their_bond_with_an_experts_queries():
    """Copies that turned the space of queries and keys in opposite ways agree, their mean does not."""
    one = made(layers=1)
    other = averaged([one])
    for name in ("to_q", "to_k"):
        weight = getattr(other.blocks[0].attention, name).weight
        weight.data = -weight.data
    torch.testing.assert_close(one(tokens()), other(tokens()), rtol=0, atol=1e-9)
    full, shared = (upcycle([one, other], variant=each, top_k=2)(tokens()) for each in ("full", "kv_shared"))
    torch.testing.assert_close(full, one(tokens()), rtol=0, atol=1e-9)
    assert (shared - one(tokens())).abs().max() > 1e-3


def test_pitfall_routers_read_the_norm_token_by_token():
    mixture, u = made(experts=3, attention="own"), vectors()
    layer = mixture.blocks[0].feed_forward
    assert torch.equal(layer.route(u.flatten(0, 1))[1][7], layer.route(u[0, 7:8])[1][0])


def test_the_past_does_not_move_with_the_future():
    mixture, one = made(experts=3, attention="shared"), tokens(20)
    other = torch.cat([one[:, :12], tokens(8, seed=5)], dim=1)
    torch.testing.assert_close(mixture(one)[:, :12], mixture(other)[:, :12], rtol=0, atol=1e-12)


def test_mixtures_of_what_cannot_be_mixed_are_refused():
    with pytest.raises(ValueError, match="made differently"):
        upcycle([made(), made(layers=1)])
    with pytest.raises(ValueError, match="models hold a mixture"):
        upcycle([made(experts=2)] * 2)
    with pytest.raises(ValueError, match="models has 1"):
        upcycle([made()])
    with pytest.raises(ValueError, match="no variant is called 'fill'"):
        upcycle([made()] * 2, variant="fill")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"experts": 0}, "experts is 0"),
        ({"experts": 2, "top_k": 3}, "top_k is 3"),
        ({"attention": "owned"}, "no attention is called"),
        ({"experts": 2, "balance": -1.0}, "balance is"),
    ],
)
def test_bad_configuration_says_what_would_be_right(own, said):
    with pytest.raises(ValueError, match=said):
        made(**own)
