"""Superlinear multi-step attention."""

from math import isqrt

import pytest
import torch

from regardant.sequence.superlinear import Superlinear

CONFIGS = [
    {},
    {"stripes": 0, "spans": 1},
    {"stripes": 1, "spans": 2, "forward_reach": 1.0, "kv_heads": 2},
    {"search_power": 1 / 3, "span_power": 0.7, "spans": 5},
    {"search_power": 0.55, "position": "rotary", "bias": True},
]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return Superlinear(32, 4, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 97])
def test_forward_is_the_equation_and_so_are_its_gradients(config, n):
    model, x = layer(**config), inputs(n).requires_grad_()
    parameters = [x, *model.parameters()]
    fast, plain = model(x), model.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((plain * weight).sum(), parameters, allow_unused=True)
    for one, other in zip(ours, theirs):
        if one is None or other is None:  # with no anchor, nothing is searched
            assert one is other or (one if other is None else other).abs().max() == 0
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_stepping_equals_forward(config):
    model, x = layer(**config), inputs(70)
    with torch.no_grad():
        whole = model(x)
        out, state = model.prefill(x[:, :40])
        torch.testing.assert_close(out, whole[:, :40], rtol=0, atol=1e-9)
        for t in range(40, 70):
            y, state = model.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-9)


def test_a_hand_worked_query():
    """Query 24 with two stripes in its window: 8 tokens back; anchors at 24 + 1 - i², i = 3, 4, 5."""
    model = layer(stripes=2, spans=1, backward=1.0)
    assert model.window == 8 and model.shifts(25) == [8, 15, 24]
    q, k, v = model.project(inputs(25, batch=1))
    read, search = (rows[0, 0, 24] for rows in q.chunk(2, dim=1))
    anchor = max((16, 9, 0), key=lambda a: (search @ k[0, 0, a]).item())
    seen = sorted({*range(max(anchor - 5, 0), anchor + 1), *range(17, 25)})
    weights = (k[0, 0, seen] @ read / 8**0.5).softmax(0)
    out = model.attend(q, k, v, x=None, pattern=None)[0, 0, 24]
    torch.testing.assert_close(out, weights @ v[0, 0, seen], rtol=0, atol=1e-12)


@pytest.mark.parametrize("stripes", [0, 1, 3])
def test_pitfall_no_hole_between_spans_for_any_query(stripes):
    model = layer(stripes=stripes)
    at = torch.arange(4000)
    shifts = torch.tensor(model.shifts(4000))
    anchors = at[:, None] - shifts
    first, last = model.spans_of(at, anchors)
    there = anchors >= 0
    first, last = first.masked_fill(~there, 10**6), last.masked_fill(~there, -1)
    # Nearest first: each span must reach down to the one behind it, the first to the window, the last to 0.
    ends = torch.cat([(at - model.window + 1)[:, None], first[:, :-1].masked_fill(~there[:, :-1], 0)], dim=1)
    assert (last >= ends - 1)[there].all()
    lowest = torch.where(there.any(1), first.amin(1), (at - model.window + 1).clamp(min=0))
    assert (lowest == 0).all()


def test_pitfall_anchors_at_perfect_squares_are_exact():
    model = layer(stripes=3)
    assert model.shifts(10**6) == [i * i - 1 for i in range(4, 1001)]
    cubes = layer(search_power=1 / 3, stripes=0)
    assert cubes.shifts(10**6) == [i**3 - 1 for i in range(1, 101)]
    squares = torch.tensor([i * i - 1 for i in range(1, 3000)])
    first, _ = model.spans_of(squares, squares[:, None])
    assert (squares - first[:, 0] == torch.minimum(2 * torch.arange(1, 3000), squares)).all()
    assert model.spans_of(torch.tensor([9**2]), torch.tensor([[81]]))[0] == 81 - (isqrt(4 * 82) + 1)


def test_pitfall_an_early_query_without_an_anchor_reads_its_window():
    model = layer(stripes=3)
    x = inputs(15)
    q, k, v = model.project(x)
    right = torch.nn.functional.scaled_dot_product_attention(q[:, :4], k, v, is_causal=True)
    torch.testing.assert_close(model.attend(q, k, v, x=x, pattern=None), right, rtol=0, atol=1e-12)


def test_pitfall_the_search_is_over_stripes_not_over_all_keys():
    model = layer(stripes=1, spans=2)
    q, k, _ = model.project(inputs(60))
    anchors, there = model.search(q[:, 4:], k, None)
    apart = (torch.arange(60)[:, None] - anchors)[there] + 1
    assert set(apart.tolist()) <= {i * i for i in range(2, 8)}
    assert there.sum() == 2 * 4 * sum(min(2, max(isqrt(t + 1) - 1, 0)) for t in range(60))


def test_pitfall_overlapping_spans_are_each_a_softmax_of_their_own():
    """Spans so long that both are everything before the window: twice the same output, so no change."""
    wide, one = (
        layer(stripes=1, spans=2, backward=50.0, forward_reach=50.0),
        layer(stripes=1, spans=1, backward=50.0, forward_reach=50.0),
    )
    x = inputs(50)
    torch.testing.assert_close(wide(x), one(x), rtol=0, atol=1e-12)
    q, k, v = wide.project(x)
    right = torch.nn.functional.scaled_dot_product_attention(q[:, :4], k, v, is_causal=True)
    torch.testing.assert_close(wide.attend(q, k, v, x=x, pattern=None), right, rtol=0, atol=1e-12)


def test_pitfall_the_search_learns_through_the_shares():
    model = layer()
    gradient = torch.autograd.grad(model(inputs(80)).square().sum(), model.to_search.weight)[0]
    assert gradient.abs().max() > 1e-6


def test_a_step_reads_about_the_root_of_the_past():
    model = layer(stripes=1, spans=2)
    read = []
    for n in (1024, 4096, 16384):
        first, last = model.spans_of(torch.tensor([n - 1]), torch.tensor([[n // 2, n // 3]]))
        read.append(len(model.shifts(n)) + model.window + int((last - first + 1).sum()))
    assert read == [31 + 3 + 130, 63 + 3 + 258, 127 + 3 + 514]


def test_padding_counts_lengths_from_the_first_real_token():
    model, x = layer(), inputs(60)
    padding = torch.ones(2, 60, dtype=torch.bool)
    padding[0, :23] = False
    y = model(x, padding=padding)
    torch.testing.assert_close(y, model.reference(x, padding=padding), rtol=0, atol=1e-9)
    torch.testing.assert_close(y[:1, 23:], model(x[:1, 23:]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "config", [{"spans": 0}, {"stripes": -1}, {"backward": -1.0}, {"search_power": 1.0}, {"span_power": 0.0}]
)
def test_bad_configuration_says_what_would_be_right(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        Superlinear(32, 4, **config)
