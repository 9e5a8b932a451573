"""Aggregated attention: every query by itself, and the dossier's pitfalls."""

import math

import pytest
import torch
from torch.nn import functional as F

from regardant.core.grid_position import LogSpacedBias
from regardant.core.record import Record
from regardant.grid.transnext import AggregatedAttention, LengthScaledAttention, means, pooled_places


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lively(layer, seed=0):
    """In float64, with parameters that are all far from where they begin."""
    layer = layer.double()
    with torch.no_grad():
        for at, each in enumerate(layer.parameters()):
            each.copy_(0.5 * maps(*each.shape, seed=seed + at))
    return layer


def by_hand(layer, x, row, column):
    """What one query hears, head by head: the cells around it, then the pooled ones."""
    height, width = x.shape[1:3]
    pool = layer.pooled_size(height, width)
    down, across = (means(*each) for each in zip((height, width), pool))
    coarse = torch.einsum("ih,jw,hwc->ijc", down, across, F.gelu(layer.to_pool(x[0])))
    coarse = layer.pool_norm(coarse)
    steps = range(-layer.reach, layer.reach + 1)
    around = [
        (at, row + i, column + j)
        for at, (i, j) in enumerate((i, j) for i in steps for j in steps)
        if 0 <= row + i < height and 0 <= column + j < width
    ]
    seen = len(around) + pool[0] * pool[1]

    def by_heads(vector):
        return vector.unflatten(0, (-1, layer.heads, layer.dim // layer.heads))

    (q,) = F.normalize(by_heads(layer.to_q(x[0, row, column])), dim=-1)
    gain = F.softplus(layer.scale.temperature) * math.log(seen)
    scaled = (q + layer.scale.embedding) * gain[:, None]
    logits, values = [], []
    for at, i, j in around:
        key, value = by_heads(layer.to_kv(x[0, i, j]))
        logits.append((scaled * F.normalize(key, dim=-1)).sum(-1) + layer.near_bias[:, at])
        values.append(value)
    for i in range(pool[0]):
        for j in range(pool[1]):
            key, value = by_heads(layer.to_kv(coarse[i, j]))
            place = torch.stack([(part > 0).nonzero().double().mean() for part in (down[i], across[j])])
            bias = layer.position.at(place - torch.tensor([row, column]))
            logits.append((scaled * F.normalize(key, dim=-1)).sum(-1) + bias)
            values.append(value)
    weights = torch.stack(logits).softmax(0)
    heard = (weights[..., None] * torch.stack(values)).sum(0)
    for (at, _, _), value in zip(around, values):
        token = (q * layer.tokens[:, :, at]).sum(-1) + layer.token_bias[:, at]
        heard = heard + token[:, None] * value
    return layer.to_out(heard.flatten())


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "options"),
    [((5, 6), dict(pool=(2, 3))), ((4, 7), dict(pool=None, reduction=2)), ((1, 1), {}),
     ((3, 9), dict(window=5, pool=2))],
    ids=str,
)  # fmt: skip
def test_it_equals_every_query_by_itself(size, options):
    layer, x = lively(AggregatedAttention(6, 2, trained=5, **options)), maps(1, *size, 6, seed=50)
    found, plainly = layer(x), layer.reference(x)
    for row in range(size[0]):
        for column in range(size[1]):
            wanted = by_hand(layer, x, row, column)
            torch.testing.assert_close(found[0, row, column], wanted, rtol=0, atol=1e-10)
            torch.testing.assert_close(plainly[0, row, column], wanted, rtol=0, atol=1e-10)


@torch.no_grad()
def test_pitfall_near_and_far_share_one_softmax():
    layer, record = lively(AggregatedAttention(4, 2, pool=2)), Record()
    layer(maps(2, 5, 4, 4), record=record)
    (near,), (far,) = record.seen["near weights"], record.seen["far weights"]
    assert near.shape == (2, 2, 20, 9) and far.shape == (2, 2, 20, 4)
    torch.testing.assert_close(near.sum(-1) + far.sum(-1), torch.ones(2, 2, 20).double())
    # Two softmaxes would have made one of each sum.
    assert near.sum(-1).max() < 0.99 and far.sum(-1).min() < 0.8


@torch.no_grad()
def test_pitfall_tokens_act_after_the_softmax_on_plain_queries():
    layer, x = lively(AggregatedAttention(4, 1, pool=2)), maps(1, 4, 4, 4, seed=9)
    tokens = layer.tokens.clone()

    def of_tokens():
        layer.tokens.copy_(tokens)
        whole = layer(x)
        layer.tokens.zero_()
        return whole - layer(x)

    before = of_tokens()
    assert before.abs().max() > 1e-2
    layer.scale.temperature.add_(2.0)
    layer.scale.embedding.add_(1.0)
    torch.testing.assert_close(of_tokens(), before, rtol=0, atol=1e-12)


@torch.no_grad()
def test_pitfall_rows_are_not_made_to_sum_to_one_again():
    layer, x = lively(AggregatedAttention(4, 1, pool=2)), torch.ones(1, 3, 3, 4).double()
    layer.to_out.weight.copy_(torch.eye(4))
    layer.to_out.bias.zero_()
    layer.tokens.zero_()
    layer.token_bias.zero_()
    before = layer(x)
    layer.token_bias.fill_(0.25)
    value = layer.to_kv(x)[0, 0, 0, 4:]
    # A corner has four positions around it, the middle nine.
    torch.testing.assert_close((layer(x) - before)[0, 0, 0], 4 * 0.25 * value)
    torch.testing.assert_close((layer(x) - before)[0, 1, 1], 9 * 0.25 * value)


@torch.no_grad()
def test_pitfall_lengths_are_those_of_each_position_and_of_the_map_at_hand():
    layer = lively(AggregatedAttention(4, 1, pool=None, reduction=2))
    seen = []
    layer.scale.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    for size in ((4, 4), (6, 8)):
        layer(maps(1, *size, 4))
    assert seen[0].tolist()[:8] == [8, 10, 10, 8, 10, 13, 13, 10]
    assert seen[1][0] == 4 + 12 and seen[1][9] == 9 + 12
    whole = lively(LengthScaledAttention(4, 1))
    whole.scale.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    whole(maps(1, 3, 5, 4))
    assert seen[2].tolist() == [15] * 15


def test_pitfall_pooled_keys_come_from_the_projection_of_the_near_ones():
    names = {name for name, _ in AggregatedAttention(4, 1).named_parameters()}
    assert {name for name in names if "pool" in name} == {
        "to_pool.weight", "to_pool.bias", "pool_norm.weight", "pool_norm.bias",
    }  # fmt: skip
    assert {name.split(".")[0] for name in names if name.startswith("to_")} == {
        "to_q", "to_kv", "to_out", "to_pool",
    }  # fmt: skip


@torch.no_grad()
def test_pitfall_offsets_are_scaled_by_the_map_of_training():
    place = LogSpacedBias(2, 9).double()
    # One side less one is 8 on the scale of the logarithm: log₂ 9 / log₂ 8.
    scaled = place.scaled(torch.tensor([8.0, -8.0]).double())
    torch.testing.assert_close(scaled, torch.tensor([1.0, -1.0]).double() * math.log2(9) / 3)
    small, large = (
        place.at_places(*place.places(*[pooled_places(side, side // 2) - torch.arange(side)[:, None]] * 2))
        for side in (6, 12)
    )
    # The same offsets have the same bias on a larger map.
    large = large.view(2, 12, 12, 6, 6)[:, :6, :6, :3, :3]
    torch.testing.assert_close(large, small.view(large.shape), rtol=0, atol=1e-12)


def test_pooled_places_are_the_means_of_the_places():
    for length, count in ((56, 7), (9, 4), (5, 5), (7, 1)):
        wanted = means(length, count) @ torch.arange(length).double()
        torch.testing.assert_close(pooled_places(length, count).double(), wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [(dict(window=4), "window is 4, but it is odd"), (dict(reduction=2), "one of them is given"),
     (dict(pool=None), "one of them is given"), (dict(pool=None, reduction=0), "reduction is 0"),
     (dict(pool=0), "pool is 0")],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_said_in_a_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        AggregatedAttention(4, 2, **options)
