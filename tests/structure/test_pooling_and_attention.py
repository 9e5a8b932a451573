"""Poolers of hidden states."""

import pytest
import torch
import torch.nn.functional as F

from regardant.structure.pooling_and_attention import (
    LastLayerPooler,
    MultiLayerPooler,
    PlainPooler,
    summarise,
)


def states(levels=3, n=5, seed=0):
    return torch.randn(2, levels, n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(kind, **own):
    torch.manual_seed(0)
    return (kind(8, 3, 2, **own) if kind is MultiLayerPooler else kind(8, 2, **own)).double()


def test_summaries_by_hand():
    level = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, 8.0]]], dtype=torch.float64)
    real = torch.tensor([[False, True, True]])
    assert summarise(level, None, "end").tolist() == [[5, 8]]
    assert summarise(level, real, "mean").tolist() == [[4, 5]]
    torch.testing.assert_close(summarise(level, None, "weighted"), torch.tensor([[22.0, 28.0]]).double() / 6)
    torch.testing.assert_close(summarise(level, real, "weighted"), torch.tensor([[13.0, 18.0]]).double() / 3)


def test_pitfall_the_end_is_the_last_real_token_on_whichever_side_the_padding_is():
    x = states()
    right, left = F.pad(x, (0, 0, 0, 4), value=9.0), F.pad(x, (0, 0, 4, 0), value=9.0)
    at = torch.arange(9).expand(2, -1)
    wanted = F.normalize(x[:, -1, -1], dim=-1)
    for filled, real in ((right, at < 5), (left, at >= 4)):
        torch.testing.assert_close(PlainPooler(8)(filled, real), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [MultiLayerPooler, LastLayerPooler])
def test_padding_on_either_side_changes_nothing(kind):
    pooler, x, at = made(kind), states(), torch.arange(9).expand(2, -1)
    plain = pooler(x)
    torch.testing.assert_close(pooler(F.pad(x, (0, 0, 0, 4), value=9.0), at < 5), plain, rtol=0, atol=1e-9)
    torch.testing.assert_close(pooler(F.pad(x, (0, 0, 4, 0), value=9.0), at >= 4), plain, rtol=0, atol=1e-9)


def test_pitfall_a_level_is_read_by_its_direction_however_long_it_is():
    """Without the norm before keys and values a level a hundred times as long would be all that is heard."""
    pooler, x = made(MultiLayerPooler), states()
    torch.nn.init.zeros_(pooler.level.weight)
    longer = x * torch.tensor([1.0, 1e3, 1.0], dtype=torch.float64)[:, None, None]
    # A norm divides by √(variance + 1e-5), so that short vectors feel their length a little.
    torch.testing.assert_close(pooler(longer), pooler(x), rtol=0, atol=1e-4)
    assert (pooler(x + longer) - pooler(x)).abs().max() < 1e-4


def test_pitfall_the_embedding_counts_as_a_level_only_where_the_caller_says_so():
    """A model of three layers gives four hidden states."""
    pooler = made(MultiLayerPooler)
    with pytest.raises(ValueError, match="4 levels, but this pooler was made for 3"):
        pooler(states(levels=4))
    host = list(states(levels=4).unbind(1))
    torch.testing.assert_close(pooler(host[1:]), pooler(states(levels=4)[:, 1:]), rtol=0, atol=0)


def test_pitfall_latents_ask_and_hidden_states_answer():
    """One latent over one token of a model gives it W_o W_v LN(z); what it asks makes no difference."""
    pooler = made(LastLayerPooler, latents=1)
    for name in ("inner", "outer"):
        torch.nn.init.zeros_(getattr(pooler, name).weight)
        torch.nn.init.zeros_(getattr(pooler, name).bias)
    z = states(levels=1, n=1)[:, 0, 0]
    wanted = F.normalize(pooler.latents[0] + pooler.to_out(pooler.to_v(pooler.norm(z))), dim=-1)
    torch.testing.assert_close(pooler(states(levels=1, n=1)), wanted, rtol=0, atol=1e-12)
    torch.nn.init.normal_(pooler.to_q.weight)
    torch.testing.assert_close(pooler(states(levels=1, n=1)), wanted, rtol=0, atol=1e-12)


def test_levels_with_one_content_are_told_apart_by_their_vectors():
    pooler, x = made(MultiLayerPooler), states()
    turned = x.flip(1)
    assert (pooler(x) - pooler(turned)).abs().max() > 1e-3
    torch.nn.init.zeros_(pooler.level.weight)
    torch.testing.assert_close(pooler(x), pooler(turned), rtol=0, atol=1e-12)


def test_summaries_are_all_that_multi_layer_pooling_needs():
    pooler, x = made(MultiLayerPooler, summary="mean"), states()
    read = F.normalize(pooler.read(x.mean(2).unbind(1)), dim=-1)
    torch.testing.assert_close(read, pooler(x), rtol=0, atol=1e-12)


def test_bad_input_says_what_would_be_right():
    real = torch.tensor([[True] * 5, [False] * 5])
    with pytest.raises(ValueError, match="a text without a token"):
        PlainPooler(8)(states(), real)
    with pytest.raises(ValueError, match="no summary is called 'eos'"):
        PlainPooler(8, summary="eos")
    with pytest.raises(ValueError, match="states holds no level"):
        PlainPooler(8)([])
    with pytest.raises(ValueError, match="latents is 0"):
        made(LastLayerPooler, latents=0)
