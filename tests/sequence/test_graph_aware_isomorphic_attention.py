"""Attention maps as graphs: GIN and PNA."""

import pytest
import torch

from regardant.core.pattern import Causal
from regardant.sequence.graph_aware_isomorphic_attention import (
    EDGES,
    AggregateAttention,
    AggregateRule,
    HeadMLP,
    IsomorphicAttention,
    MadeEdges,
)


def made(kind=IsomorphicAttention, dim=16, heads=2, **own):
    torch.manual_seed(0)
    return kind(dim, heads, **{"causal": True} | own).double()


def vectors(n=21, seed=1, dim=16):
    return torch.randn(2, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_edges_by_hand():
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64).log()
    mask = torch.tensor([True, True, True, False])

    def edges(kind, threshold=0.25, fraction=0.5):
        return MadeEdges(kind, threshold=threshold, fraction=fraction)(logits, mask).tolist()

    assert edges("all") == pytest.approx([0.5, 0.3, 0.2, 0])
    assert edges("relu") == pytest.approx([0.25, 0.05, 0, 0])
    assert edges("binary") == [1, 1, 0, 0]
    assert edges("top-k") == [1, 1, 0, 0]
    assert edges("top-k", fraction=0.01) == [1, 0, 0, 0]
    assert edges("sigmoid") == pytest.approx([0.92414, 0.62246, 0.37754, 0], abs=1e-5)
    assert edges("softplus") == pytest.approx([0.82593, 0.71846, 0.66846, 0], abs=1e-5)
    assert edges("silu") == pytest.approx([0.25 * 0.562177, 0.05 * 0.512497, -0.05 * 0.487503, 0], abs=1e-6)


@pytest.mark.parametrize("kind", [IsomorphicAttention, AggregateAttention])
@pytest.mark.parametrize("edges", EDGES)
def test_every_kind_of_edge_equals_the_equation_and_steps(kind, edges):
    layer, x = made(kind, edges=edges, threshold=0.06, sharpen=True, position="rotary"), vectors()
    if kind is IsomorphicAttention:
        torch.nn.init.normal_(layer.epsilon)
    torch.nn.init.constant_(layer.to_q.alpha, 1.5)
    right = layer.reference(x)
    torch.testing.assert_close(layer(x), right, rtol=0, atol=1e-9)
    state = layer.start(2)
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state)
        torch.testing.assert_close(y, right[:, t], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", [IsomorphicAttention, AggregateAttention])
@pytest.mark.parametrize("edges", ["sigmoid", "softplus", "silu", "top-k"])
def test_pitfall_a_function_of_nothing_is_not_nothing_so_the_order_holds_behind_it(kind, edges):
    """σ(0 - threshold) > 0 would be an edge to every later token."""
    layer, one = made(kind, edges=edges), vectors()
    other = torch.cat([one[:, :12], vectors(9, seed=5)], dim=1)
    torch.testing.assert_close(layer(one)[:, :12], layer(other)[:, :12], rtol=0, atol=1e-12)


def test_pitfall_top_k_counts_among_the_keys_that_a_query_sees():
    """A fraction of the whole length would give an early query more edges as the sequence goes on."""
    layer, x = made(edges="top-k", fraction=0.2), vectors(40)
    torch.testing.assert_close(layer(x)[:, :10], layer(x[:, :10]), rtol=0, atol=1e-12)


def test_pitfall_heads_read_slices_of_the_input_so_they_share_no_keys_and_span_the_width():
    with pytest.raises(ValueError, match="shares no keys among heads"):
        made(heads=4, kv_heads=2)
    with pytest.raises(ValueError, match="head_dim is 6"):
        made(head_dim=6)
    layer, x = made(), vectors()
    assert not any(name.startswith("to_v") for name, _ in layer.named_parameters())
    torch.testing.assert_close(layer.project(x)[2][:, 1], x[..., 8:], rtol=0, atol=0)


@pytest.mark.parametrize("edges", ["all", "binary"])
def test_pitfall_the_norm_keeps_what_sums_over_more_neighbours_at_one_size(edges):
    """The same token n times over: the sum of binary edges grows with n, what the MLP gives hardly does."""
    layer = made(edges=edges, threshold=-1.0, causal=False)
    torch.nn.init.zeros_(layer.mlp.inner_bias)
    few, many = (layer(vectors(1, seed=3).expand(-1, n, -1))[:, -1] for n in (2, 200))
    torch.testing.assert_close(many, few, rtol=1e-3, atol=1e-5)


def test_pitfall_row_i_receives_from_the_tokens_before_it():
    """One strong neighbour: what comes out is the MLP of that neighbour's slice."""
    layer, x = made(heads=1, dim=4), torch.eye(4, dtype=torch.float64)[None]
    with torch.no_grad():
        layer.to_q.weight.copy_(50 * torch.eye(4).roll(-1, dims=0))  # token t asks for token t - 1
        layer.to_k.weight.copy_(torch.eye(4))
        layer.to_out.weight.copy_(torch.eye(4))
    wanted = layer.mlp(x[:, None])[:, 0]
    torch.testing.assert_close(layer(x)[:, 1:], wanted[:, :-1], rtol=0, atol=1e-6)


def test_epsilon_adds_the_token_itself():
    layer, x = made(heads=1), vectors(1)
    torch.nn.init.constant_(layer.epsilon, 2.0)
    wanted = layer.to_out(layer.mlp(3 * x[:, None])[:, 0])
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)


def test_aggregates_by_hand():
    q = k = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
    v = torch.tensor([[1.0, -1.0], [4.0, 5.0], [1.0, 2.0]], dtype=torch.float64)[None, None]
    total, mean, largest, variance = AggregateRule()(q, k, v, pattern=Causal())[0, 0].chunk(4, dim=-1)
    torch.testing.assert_close(mean, torch.tensor([[1, -1], [2.5, 2], [2, 2]], dtype=torch.float64))
    torch.testing.assert_close(total, mean)
    torch.testing.assert_close(largest, torch.tensor([[1, -1], [4, 5], [4, 5]], dtype=torch.float64))
    torch.testing.assert_close(variance, torch.tensor([[0, 0], [2.25, 9], [2, 6]], dtype=torch.float64))
    made_edges = MadeEdges("binary", threshold=0.4, fraction=0.1)
    found = AggregateRule(normaliser=made_edges)(q, k, v, pattern=Causal())[0, 0]
    # Weights of 1, 1/2 and 1/3: the last query has no edge at all.
    assert found[1].tolist() == [5, 4, 2.5, 2, 4, 5, 2.25, 9]
    assert found[2].tolist() == [0] * 8


def test_gradients_of_thresholded_aggregates_in_tiles(monkeypatch):
    monkeypatch.setattr("regardant.sequence.graph_aware_isomorphic_attention.AT_ONCE", 1000)
    layer, x = made(AggregateAttention, edges="relu", threshold=0.05), vectors().requires_grad_()
    found = torch.autograd.grad(layer(x).square().sum(), [x, layer.to_q.weight, layer.to_v.weight])
    right = torch.autograd.grad(layer.reference(x).square().sum(), [x, layer.to_q.weight, layer.to_v.weight])
    for one, other in zip(found, right):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_one_product_for_all_heads_is_an_mlp_a_head():
    torch.manual_seed(0)
    mlp = HeadMLP(3, 4, 7, 5, norm=True, bias=True).double()
    for weight in mlp.parameters():
        torch.nn.init.normal_(weight)
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    for head in range(3):
        torch.testing.assert_close(mlp(x)[:, head], mlp.plainly(x[:, head], head), rtol=0, atol=1e-9)


def test_bad_configuration_says_what_would_be_right():
    with pytest.raises(ValueError, match="no edges is called 'some'"):
        made(edges="some")
    with pytest.raises(ValueError, match="fraction is 0"):
        made(edges="top-k", fraction=0.0)
    with pytest.raises(ValueError, match="expansion is 0"):
        made(expansion=0)
    with pytest.raises(ValueError, match="does not grow out of a softmax layer"):
        IsomorphicAttention.from_dense(made())
