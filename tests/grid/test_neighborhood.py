"""Neighbourhoods on maps and volumes: the product of one axis' windows, tiles with halos."""

import sys
from importlib.machinery import ModuleSpec
from itertools import product
from types import ModuleType

import pytest
import torch

from regardant.grid.neighborhood import NeighborhoodAttention, NeighborhoodAttention3d


def made(dim=8, heads=2, *, seed=0, **own):
    torch.manual_seed(seed)
    return NeighborhoodAttention(dim, heads, **own).double()


def maps(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def along(i, n, kernel, dilation, causal):
    """The neighbours of one coordinate on one axis, by the definition."""
    members = [j for j in range(n) if j % dilation == i % dilation]
    place = members.index(i)
    if causal:
        return members[max(0, place - kernel + 1) : place + 1]
    start = min(max(place - (kernel - 1) // 2, 0), max(len(members) - kernel, 0))
    return members[start : start + kernel]


def by_loop(layer, x, kernel, dilation, causal):
    size = x.shape[1:-1]
    places = list(product(*map(range, size)))
    q, k, v = layer.project(x.flatten(1, -2))
    out = torch.zeros_like(q)
    for row, place in enumerate(places):
        axes = [along(*facts) for facts in zip(place, size, kernel, dilation, causal)]
        near = list(product(*axes))
        seen = [places.index(key) for key in near]
        logits = torch.einsum("bhd,bhnd->bhn", q[:, :, row], k[:, :, seen]) / q.shape[-1] ** 0.5
        if layer.rule.offsets is not None:
            index = [
                [key[a] // dilation[a] - place[a] // dilation[a] + kernel[a] - 1 for key in near]
                for a in range(len(size))
            ]
            logits = logits + layer.rule.offsets.table[(slice(None), *index)]
        out[:, :, row] = torch.einsum("bhn,bhnd->bhd", logits.softmax(-1), v[:, :, seen])
    return layer.merge(out, x=x.flatten(1, -2)).unflatten(1, size)


@pytest.mark.parametrize(
    ("size", "kernel", "dilation", "causal"),
    [
        ((9,), (3,), (2,), (False,)),
        ((7, 13), (3, 5), (1, 2), (False, False)),
        ((7, 8), (5, 3), (3, 1), (False, True)),
        ((6, 7), (3, 3), (2, 3), (True, True)),
        ((1, 1), (3, 3), (1, 1), (False, False)),
        ((1, 6), (7, 3), (2, 2), (True, False)),
        ((3, 4, 5), (3, 1, 3), (1, 1, 2), (False, True, False)),
        ((4, 3, 3), (3, 3, 3), (1, 2, 3), (True, False, False)),
    ],
)
def test_forward_and_reference_are_the_definition(size, kernel, dilation, causal):
    layer = made(kernel=kernel, dilation=dilation, is_causal=causal, relative_bias=True)
    x = maps(2, *size, 8)
    expected = by_loop(layer, x, kernel, dilation, causal)
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.reference(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(33, 64), (31, 37)])
@pytest.mark.parametrize(
    "own",
    [
        {"kernel": 7},
        {"kernel": (3, 5), "dilation": (4, 3), "kv_heads": 1},
        {"kernel": 5, "dilation": 2, "is_causal": (True, False), "relative_bias": True},
        {"kernel": 4, "is_causal": True},
    ],
)
def test_large_maps_with_gradients(size, own):
    """Large enough that tiles are cut, and not a multiple of anything."""
    layer = made(**own)
    x, far, results = maps(1, *size, 8), maps(1, *size, 8, seed=2), []
    for run in (layer, layer.reference):
        probe = x.clone().requires_grad_()
        y = run(probe)
        results.append([y, *torch.autograd.grad((y * far).sum(), [probe, *layer.parameters()])])
    for fast, plain in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_no_zero_padding_at_borders():
    """Equal logits: a corner averages the nine keys of a shifted window, not the four of a cut one."""
    layer = made(dim=2, heads=1, kernel=3)
    with torch.no_grad():
        layer.to_q.weight.zero_()
        layer.to_v.weight.copy_(torch.eye(2))
        layer.to_out.weight.copy_(torch.eye(2))
    x = maps(1, 5, 6, 2)
    y = layer(x)
    torch.testing.assert_close(y[0, 0, 0], x[0, :3, :3].mean((0, 1)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y[0, 4, 5], x[0, 2:, 3:].mean((0, 1)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y[0, 2, 3], x[0, 1:4, 2:5].mean((0, 1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "own", [{"kernel": 3}, {"kernel": 3, "dilation": 2}, {"kernel": (2, 3), "is_causal": (True, False)}]
)
def test_receptive_field_is_what_gradients_reach(own):
    layer, x = made(**own), maps(1, 5, 6, 8).requires_grad_()
    y = layer(x).flatten(0, 2)
    reached = [
        torch.autograd.grad(y[at].sum(), x, retain_graph=True)[0].abs().sum(-1).flatten() > 0
        for at in range(30)
    ]
    assert torch.equal(torch.stack(reached), layer.receptive_field(5, 6).dense(30))


def test_kernel_of_the_whole_map_is_full_attention():
    layer, x = made(kernel=(5, 6)), maps(1, 5, 6, 8)
    q, k, v = layer.project(x.flatten(1, 2))
    heads = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
    torch.testing.assert_close(layer(x), layer.merge(heads, x=x).unflatten(1, (5, 6)), rtol=1e-9, atol=1e-9)


def test_pairs_are_linear_in_positions():
    layer = made(kernel=7)
    small, large = layer.explain(64, 64), layer.explain(128, 128)
    assert small.name == large.name == "banded"
    assert large.pairs < 4.2 * small.pairs
    assert made(kernel=7, dilation=4).explain(128, 128).pairs < 1.5 * large.pairs


def test_rank_follows_from_the_tuples():
    assert made().rank == 2
    assert made(kernel=(3, 3, 3)).rank == 3
    assert made(dilation=(2,)).rank == 1
    assert made(rank=3)(maps(1, 2, 3, 4, 8)).shape == (1, 2, 3, 4, 8)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: made(heads=3), "dim=8 does not divide into heads=3"),
        (lambda: made(kernel=0), "kernel is 0"),
        (lambda: made(kernel=(3, 0)), r"kernel is \(3, 0\)"),
        (lambda: made(kernel=(3, 3), dilation=(1, 1, 1)), "dilation is"),
        (lambda: made()(maps(2, 3, 8)), r"\[batch, height, width, channels\]"),
        (lambda: made(rank=1)(maps(2, 3, 3, 8)), r"\[batch, length, channels\]"),
        (lambda: made()(maps(2, 3, 3, 9)), "x has width 9"),
        (lambda: made()(maps(2, 3, 0, 8)), "holds no position"),
        (lambda: made()(maps(2, 3, 3, 8).float()), "x is torch.float32"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    "own", [{}, {"kernel": 5, "is_causal": True}, {"dilation": 2, "relative_bias": True}]
)
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (24, 31)])
def test_the_unfused_form_is_the_fused_one(size, own):
    fused, unfused = made(kv_heads=1, **own), made(kv_heads=1, form="unfused", **own)
    x = maps(2, *size, 8).requires_grad_()
    one, other = fused(x), unfused(x)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    weight = torch.randn_like(one)
    ours, theirs = (
        torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])
        for y, layer in ((one, fused), (other, unfused))
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["fused", "unfused"])
def test_volumes(form):
    layer, x = NeighborhoodAttention3d(8, 2, form=form).double(), maps(2, 5, 6, 7, 8)
    torch.testing.assert_close(layer(x), layer.reference(x), rtol=0, atol=1e-9)
    plain = NeighborhoodAttention(8, 2, kernel=(3, 3, 3)).double()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-9)


def test_each_form_explains_itself():
    fused, unfused = made(kernel=7).explain(64, 64), made(kernel=7, form="unfused").explain(64, 64)
    assert (fused.name, unfused.name) == ("banded", "unfused")
    assert 64**2 * 49 < unfused.pairs < 64**2 * 49 * 5


def stand_in() -> ModuleType:
    """A package with natten's call, which attends by a loop over the queries."""

    def na2d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None):
        size, out = query.shape[1:3], torch.zeros_like(value)
        for place in product(*map(range, size)):
            axes = [along(*facts) for facts in zip(place, size, kernel_size, dilation, is_causal)]
            seen = tuple(torch.tensor(list(product(*axes))).T)
            k, v = key[(slice(None), *seen)], value[(slice(None), *seen)]
            logits = torch.einsum("bhd,bnhd->bhn", query[(slice(None), *place)], k) * scale
            out[(slice(None), *place)] = torch.einsum("bhn,bnhd->bhd", logits.softmax(-1), v)
        return out

    module = ModuleType("natten")
    module.__spec__, module.na2d = ModuleSpec("natten", None), na2d
    return module


@pytest.mark.parametrize("own", [{}, {"kernel": (3, 5), "is_causal": (True, False), "kv_heads": 1}])
def test_nattens_kernels_are_called_by_their_names(monkeypatch, own):
    monkeypatch.setitem(sys.modules, "natten", stand_in())
    layer, x = made(form="natten", **{"kernel": 3} | own), maps(2, 5, 6, 8)
    torch.testing.assert_close(layer(x), layer.reference(x), rtol=0, atol=1e-9)


def test_natten_refuses_in_a_sentence_what_it_cannot_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "natten", None)
    with pytest.raises(ValueError, match="natten is not installed"):
        made(form="natten")
    monkeypatch.setitem(sys.modules, "natten", stand_in())
    with pytest.raises(ValueError, match="natten has no bias"):
        made(form="natten", relative_bias=True)
    with pytest.raises(ValueError, match="natten has no such case"):
        made(form="natten", kernel=7)(maps(1, 5, 9, 8))


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="no form is called 'fuse'"):
        made(form="fuse")
