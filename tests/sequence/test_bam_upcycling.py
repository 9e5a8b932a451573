"""Soft mixture of attention."""

import pytest
import torch

from regardant.core.averaged import averaged
from regardant.core.pattern import PerHead, Sink, Window
from regardant.core.record import Record
from regardant.sequence.bam_upcycling import SoftMixtureOfAttention
from regardant.sequence.softmax import Softmax


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=generator(seed))


def dense(seed=0, **config):
    torch.manual_seed(seed)
    return Softmax(32, 4, **{"causal": True} | config).double()


def mixture(seed=0, **config):
    torch.manual_seed(seed)
    return SoftMixtureOfAttention(32, 4, **{"causal": True, "experts": 3} | config).double()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "config", [{}, {"position": "rotary", "bias": True}, {"position": "alibi"}, {"pattern": Window(5)}]
)
def test_each_expert_is_its_layer_and_the_router_weighs_them(kv_heads, config):
    layers = [dense(seed, kv_heads=kv_heads, **config) for seed in range(3)]
    mixed, x = SoftMixtureOfAttention.upcycled(layers), inputs(17)
    share = (x @ mixed.router.weight.mT).softmax(-1)
    plain = sum(share[..., at, None] * layer(x) for at, layer in enumerate(layers))
    torch.testing.assert_close(mixed(x), plain, rtol=0, atol=1e-9)
    torch.testing.assert_close(mixed.reference(x), plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_shared_keys_and_values_are_the_mean_over_the_layers(kv_heads):
    layers = [dense(seed, kv_heads=kv_heads, position="rotary", bias=True) for seed in range(3)]
    mixed, x = SoftMixtureOfAttention.upcycled(layers, keys="shared"), inputs(17)
    for name in ("to_k", "to_v"):
        middle = averaged([getattr(layer, name) for layer in layers])
        for layer in layers:
            setattr(layer, name, middle)
    share = mixed.route(x)
    plain = sum(share[..., at, None] * layer(x) for at, layer in enumerate(layers))
    torch.testing.assert_close(mixed(x), plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("keys", ["own", "shared"])
@pytest.mark.parametrize("position", ["none", "rotary", "alibi", "relative"])
def test_copies_of_one_layer_are_that_layer_whatever_the_router_says(keys, position):
    layer, x = dense(position=position, kv_heads=2), inputs(21)
    mixed = SoftMixtureOfAttention.from_dense(layer, experts=4, keys=keys)
    torch.nn.init.normal_(mixed.router.weight, std=3.0)
    torch.testing.assert_close(mixed(x), layer(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("keys", "sets"), [("own", 3), ("shared", 1)])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_decoding_keeps_one_set_of_keys_an_expert_or_one_for_all(keys, sets, kv_heads):
    mixed, x = mixture(keys=keys, kv_heads=kv_heads, position="rotary"), inputs(19)
    with torch.no_grad():
        y, state = mixed.prefill(x[:, :7])
        outs = [y]
        for t in range(7, 19):
            y, state = mixed.step(x[:, t], state)
            outs.append(y[:, None])
        torch.testing.assert_close(torch.cat(outs, 1), mixed(x), rtol=0, atol=1e-9)
    assert state.nbytes == 2 * 2 * sets * kv_heads * 19 * 8 * 8


@pytest.mark.parametrize("keys", ["own", "shared"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_pattern_by_head_is_that_of_every_experts_heads(keys, kv_heads):
    pattern = PerHead([Window(1), Window(3), Sink(1) | Window(2), Window(9)])
    mixed, x = mixture(keys=keys, kv_heads=kv_heads, pattern=pattern), inputs(25)
    torch.testing.assert_close(mixed(x), mixed.reference(x), rtol=0, atol=1e-9)
    layer = dense(pattern=pattern, kv_heads=kv_heads)
    copies = SoftMixtureOfAttention.from_dense(layer, experts=2, keys=keys)
    torch.testing.assert_close(copies(x), layer(x), rtol=0, atol=1e-9)


def test_all_experts_take_part_in_every_token():
    mixed, x, record = mixture(), inputs(30), Record()
    mixed(x, record=record)
    (share,) = record.seen["experts"]
    assert share.shape == (2, 30, 3) and (share > 0).all() and not record.losses
    torch.testing.assert_close(share.sum(-1), torch.ones(2, 30, dtype=torch.float64))


def test_pitfall_experts_share_positions_and_masks():
    mixed, at = mixture(position="alibi", kv_heads=2), torch.arange(9)
    bias = mixed.rule.bias.block(at, at)
    own = mixed.position.block(at, at)
    assert bias.shape[0] == 12 and own.shape[0] == 4
    torch.testing.assert_close(bias, own[list(mixed._own)])
    assert sorted(mixed._own) == [head for head in range(4) for _ in range(3)]


def test_pitfall_the_router_reads_each_token():
    mixed, x = mixture(), inputs(12)
    torch.testing.assert_close(mixed.route(x)[:, 5:6], mixed.route(x[:, 5:6]))
    assert mixed.route(x).std(1).min() > 0


def test_layers_that_are_no_copies_are_refused():
    with pytest.raises(ValueError, match="layers differ"):
        SoftMixtureOfAttention.upcycled([dense(), dense(kv_heads=2)])
    with pytest.raises(ValueError, match="layers is empty"):
        SoftMixtureOfAttention.upcycled([])


@pytest.mark.parametrize(
    ("config", "said"), [({"experts": 0}, "experts is 0"), ({"keys": "none"}, "no keys is called")]
)
def test_bad_configuration_says_what_would_be_right(config, said):
    with pytest.raises(ValueError, match=said):
        mixture(**config)


def test_a_mean_of_modules_is_the_mean_of_their_parameters():
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    middle = averaged([one, other])
    torch.testing.assert_close(middle.weight, (one.weight + other.weight) / 2)
    with pytest.raises(ValueError, match="modules differ"):
        averaged([one, torch.nn.Linear(2, 2)])
