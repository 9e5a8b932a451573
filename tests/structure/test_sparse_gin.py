"""The adapter that reads a frozen layer's attention as a graph."""

import pytest
import torch

from regardant.structure.sparse_gin import SparseGIN, scales


def made(**own):
    torch.manual_seed(0)
    return SparseGIN(6, 2, **{"width": 5} | own).double()


def maps(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 2, n, n, generator=generator, dtype=torch.float64)
    return logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf).softmax(-1)


def hidden(n=6, seed=1):
    return torch.randn(2, n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_edges_by_hand():
    weights = torch.tensor([[1.0, 0.0], [0.7, 0.3]], dtype=torch.float64)
    both = torch.stack([weights, torch.tensor([[1.0, 0], [0.1, 0.9]], dtype=torch.float64)])[None]
    assert made(threshold=0.45).edges(both)[0].tolist() == [[1, 0], [0, 1]]
    assert made(threshold=0.35).edges(both)[0].tolist() == [[1, 0], [1, 1]]
    assert made(adjacency="sum", threshold=0.75).edges(both)[0].tolist() == [[1, 0], [1, 1]]
    assert made(self_loops=False, threshold=0.35).edges(both)[0].tolist() == [[0, 0], [1, 0]]
    found = made(weighted=True, threshold=0.5).edges(both)[0].flatten().tolist()
    assert found == pytest.approx([0.993307, 0, 0, 0.731059], abs=1e-6)


def test_pitfall_a_sigmoid_of_nothing_is_an_edge_where_nothing_is_cut():
    """With no cut each pair gets one, later and padded tokens too, unless they are kept out behind it."""
    adapter = made(cut=0.0, weighted=True)
    padding = torch.tensor([[True] * 4 + [False] * 2, [False] * 2 + [True] * 4])
    edges = adapter.edges(maps(), padding)
    assert (edges.triu(1) == 0).all() and (edges.mT[~padding] == 0).all()
    assert (edges[0, 3, :4] > 0).all()
    one = hidden()
    other = torch.cat([one[:, :3], hidden(3, seed=7)], dim=1)
    torch.testing.assert_close(adapter(one, maps())[:, :3], adapter(other, maps())[:, :3], rtol=0, atol=1e-12)


def test_pitfall_with_s_at_0_the_host_is_what_it_was_and_s_learns_first():
    adapter, x = made(scale=0.0), hidden()
    found = adapter(x, maps())
    assert torch.equal(found, x)
    gradients = torch.autograd.grad((found * hidden(seed=3)).sum(), list(adapter.parameters()))
    moved = {name for (name, _), each in zip(adapter.named_parameters(), gradients) if each.abs().max() > 0}
    assert moved == {"scale"}


def test_pitfall_row_i_receives_from_j():
    """Token 2 attends to token 0 alone: it hears of token 0, and token 0 not of it."""
    weights = torch.eye(3, dtype=torch.float64).repeat(1, 2, 1, 1)
    weights[:, :, 2] = torch.tensor([1.0, 0.0, 0.0])
    adapter, x = made(), hidden(3)[:1]
    plain = adapter(x, weights)
    changed = x.clone()
    changed[:, 0] += 1
    moved = (adapter(changed, weights) - changed) - (plain - x)
    assert [bool(row.abs().max() > 1e-6) for row in moved[0]] == [True, False, True]
    changed = x.clone()
    changed[:, 2] += 1
    moved = (adapter(changed, weights) - changed) - (plain - x)
    # Token 2 takes no part in its own sum: it has no edge to itself here, and ε starts at 0.
    assert [bool(row.abs().max() > 1e-6) for row in moved[0][:2]] == [False, False]


def test_pitfall_sums_over_many_neighbours_stay_of_one_size():
    """The norms hold what an unweighted sum over 200 equal neighbours gives to what 2 give."""
    adapter = made(layers=1)
    for step in adapter.steps:
        torch.nn.init.zeros_(step.inner.bias)
    sizes = []
    for n in (2, 200):
        x, every = hidden(1).expand(-1, n, -1), torch.ones(2, 2, n, n, dtype=torch.float64)
        sizes.append((adapter(x, every) - x)[:, -1].norm())
    assert sizes[1] < 1.5 * sizes[0]


def test_scales_run_from_the_first_layer_to_the_last():
    assert scales(3, first=0.0, last=0.5) == [0.0, 0.25, 0.5]
    assert scales(1, first=0.1, last=0.5) == [0.1]
    with pytest.raises(ValueError, match="layers is 0"):
        scales(0, first=0.0, last=1.0)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"adjacency": "max"}, "no adjacency is called 'max'"),
        ({"cut": 1.0}, "cut is 1.0"),
        ({"steepness": 0.0}, "steepness is 0.0"),
        ({"width": 0}, "width is 0"),
        ({"expansion": 0}, "expansion is 0"),
    ],
)
def test_bad_configuration_says_what_would_be_right(own, said):
    with pytest.raises(ValueError, match=said):
        made(**own)


def test_maps_of_another_length_are_refused():
    with pytest.raises(ValueError, match="maps is"):
        made()(hidden(5), maps(6))
