"""Every plan against the plain masked equation, forward and backward."""

import pytest
import torch

from regardant.core.grid_pattern import Axial, Circle, CrissCross, Dilated2d, Halo, Stripe, Window2d
from regardant.core.neighborhood import Neighborhood
from regardant.core.pattern import (
    Blocks,
    Causal,
    Dilated,
    Document,
    Everything,
    Padding,
    PerHead,
    Prefix,
    Sink,
    Window,
)
from regardant.core.plan import attend, attend_dense, explain
from regardant.core.position import Alibi, RelativeBias
from tests.core.attended import assert_equal, draw


def padding(b, n, *, left):
    lengths = torch.arange(b) * 7 % n + 1
    real = torch.arange(n) < lengths[:, None]
    return real.flip(1) if left else real


BANDS = {
    "window": Window(5),
    "causal window": Causal() & Window(9),
    "wide causal window": Causal() & Window(70),
    "window of one": Window(1),
    "sinks": Causal() & (Window(6) | Sink(3)),
    "sinks, not causal": Window(6) | Sink(40),
    "only sinks": Sink(4),
    "dilated": Causal() & Dilated(4, 3),
    "blocks, causal": Blocks(7) & Causal(),
    "documents": Causal() & Window(11) & Document(torch.arange(300) // 13),
    "documents a sample": Window(11)
    & Document(torch.stack([torch.arange(300) // 13, torch.arange(300) // 29])),
    "a head each": Causal() & PerHead([Window(3), Window(9), Sink(2), Window(4) | Sink(1)]),
    "not the nearest": Causal() & Window(12) & ~Window(3),
}


@pytest.mark.parametrize("name", BANDS)
@pytest.mark.parametrize("n", [1, 17, 64, 257])
def test_banded(name, n):
    assert_equal(*draw(2, 4, 2, n, n, 8), BANDS[name], plan="banded")


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("plan", ["fused", "banded", "gather", "dense"])
def test_padding_in_every_plan(plan, left):
    n = 131
    pattern = {"fused": Causal()}.get(plan, Causal() & (Window(9) | Sink(2)))
    assert_equal(*draw(3, 2, 1, n, n, 8), pattern & Padding(padding(3, n, left=left)), plan=plan)
    if plan == "fused":
        assert_equal(*draw(3, 2, 1, n, n, 8), Padding(padding(3, n, left=left)), plan=plan)
        nothing = torch.zeros(3, n, dtype=torch.bool)
        assert_equal(*draw(3, 2, 1, n, n, 8), Padding(nothing), plan=plan)


@pytest.mark.parametrize("pattern", [Blocks(16), Blocks(16) & Causal(), Blocks(400)])
@pytest.mark.parametrize("n", [1, 16, 64, 133])
def test_partition_of_sequences(pattern, n):
    assert_equal(*draw(2, 4, 2, n, n, 8), pattern, plan="partition")
    assert_equal(*draw(2, 4, 2, n, n, 8), pattern & Padding(padding(2, n, left=True)), plan="partition")


GRIDS = {
    "windows": Window2d(window=4),
    "shifted": Window2d(window=(4, 3), shift=(2, 1)),
    "rows": Axial(axis=1),
    "columns": Axial(axis=0),
    "criss-cross": CrissCross(),
    "criss-cross of two": Axial(axis=0) | Axial(axis=1),
    "stripes": Stripe(width=2),
    "stride": Dilated2d(stride=3),
    "windows in raster order": Window2d(window=4) & Causal(),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 5)])
def test_partition_of_grids(name, size):
    n = size[0] * size[1]
    assert_equal(*draw(2, 4, 2, n, n, 8), GRIDS[name].on(*size), plan="partition")


HALOS = {
    "neighborhood": Neighborhood(kernel=3),
    "even neighborhood": Neighborhood(kernel=(4, 5)),
    "dilated neighborhood": Neighborhood(kernel=3, dilation=(2, 3)),
    "causal neighborhood": Neighborhood(kernel=3, is_causal=(True, False)),
    "circle": Circle(radius=2.5),
    "halo": Halo(block_size=4, halo=2),
    "two": Circle(radius=2) | Neighborhood(kernel=5),
    "in raster order": Neighborhood(kernel=5) & Causal(),
}


@pytest.mark.parametrize("name", HALOS)
@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
def test_halos(name, size):
    n = size[0] * size[1]
    assert_equal(*draw(1, 2, 1, n, n, 4), HALOS[name].on(*size), plan="banded")


def test_halos_in_three_dimensions():
    assert_equal(*draw(1, 2, 2, 9 * 10 * 11, 990, 4), Neighborhood(kernel=3).on(9, 10, 11), plan="banded")


def test_neighborhood_on_a_line_is_a_band():
    assert_equal(*draw(2, 2, 1, 150, 150, 8), Neighborhood(kernel=7, dilation=2).on(150), plan="banded")


@pytest.mark.parametrize(
    "pattern",
    [
        Causal() & Dilated(5, 7),
        Window(4) | Sink(3),
        CrissCross(size=(9, 11)),
        Axial(axis=0, is_causal=True, size=(9, 11)),
        Neighborhood(kernel=3, size=(9, 11)),
    ],
)
def test_gather(pattern):
    assert_equal(*draw(2, 4, 2, 99, 99, 8), pattern, plan="gather")


@pytest.mark.parametrize("pattern", [None, Everything(), Causal()])
@pytest.mark.parametrize("n", [1, 17, 300, 513])
def test_fused(pattern, n):
    assert_equal(*draw(2, 4, 2, n, n, 8), pattern)
    assert explain(pattern, n).name == "fused"


@pytest.mark.parametrize(
    "pattern",
    [
        Prefix(5),
        Prefix(torch.tensor([3, 40])),
        ~Causal(),
        Causal() & ~Window(3),
        Document(torch.arange(1200) % 5),
    ],
)
def test_dense(pattern):
    assert_equal(*draw(2, 4, 2, 90, 90, 8), pattern)
    assert_equal(*draw(2, 2, 2, 1100, 1100, 4), pattern, plan="dense")


@pytest.mark.parametrize(
    "pattern", [None, Causal(), Causal() & Window(9), Causal() & (Window(9) | Sink(4)), Sink(3)]
)
@pytest.mark.parametrize(
    ("m", "n", "offset"), [(1, 50, 49), (5, 300, 200), (300, 40, 0), (40, 300, 0), (200, 300, 100)]
)
def test_queries_of_another_length(pattern, m, n, offset):
    assert_equal(*draw(2, 4, 2, m, n, 8), pattern, offset=offset)
    if pattern is not None and pattern.reach().bounded:
        assert_equal(*draw(2, 4, 2, m, n, 8), pattern, plan="banded", offset=offset)


@pytest.mark.parametrize("e", [3, 20])
@pytest.mark.parametrize("pattern", [None, Causal(), Causal() & Window(20), Blocks(16)])
def test_values_of_another_width(pattern, e):
    for n in (60, 400):
        assert_equal(*draw(2, 4, 2, n, n, 8, e), pattern, scale=0.3)


@pytest.mark.parametrize("plan", ["banded", "gather", "dense", None])
def test_a_bias_that_stands_still(plan):
    q, k, v = draw(2, 4, 2, 140, 140, 8)
    bias = Alibi(4).double()
    if plan != "gather":
        assert_equal(q, k, v, Causal() & (Window(9) | Sink(2)), bias=bias, plan=plan)
    assert_equal(q, k, v, Causal(), bias=bias)
    assert_equal(q, k, v, None, bias=bias)
    assert_equal(q, k, v, Blocks(20), bias=bias, plan="partition")


@pytest.mark.parametrize("plan", ["banded", "dense", None])
def test_a_bias_that_learns(plan):
    q, k, v = draw(2, 4, 2, 140, 140, 8)
    bias = RelativeBias(4, causal=True).double()
    for pattern in (Causal() & Window(9), Causal() & (Window(9) | Sink(12))):
        assert_equal(q, k, v, pattern, bias=bias, plan=plan, extra=[bias.table])
    assert_equal(q, k, v, Causal() & Padding(padding(2, 140, left=True)), bias=bias, extra=[bias.table])
    assert_equal(q, k, v, Blocks(20), bias=bias, plan="partition", extra=[bias.table])


def clipped(logits, mask):
    return (logits.softmax(dim=-1) * 1.1 - 0.05).clamp(0, 1).masked_fill(~mask, 0)


def by_count(logits, mask):
    return logits.masked_fill(~mask, 0) / mask.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("normaliser", [clipped, by_count])
@pytest.mark.parametrize(
    ("pattern", "plan"),
    [
        (Causal() & (Window(9) | Sink(12)), "banded"),
        (Causal() & Window(100) & Padding(padding(2, 143, left=True)), "banded"),
        (Blocks(20), "partition"),
        (Causal() & Dilated(5, 3), "gather"),
        (Causal() & Padding(padding(2, 143, left=True)), None),
        (Neighborhood(kernel=3, size=(11, 13)), "banded"),
        (None, None),
    ],
)
def test_another_normaliser(normaliser, pattern, plan):
    assert_equal(*draw(2, 4, 2, 143, 143, 8), pattern, plan=plan, normaliser=normaliser)


@pytest.mark.parametrize("layout", ["heads last", "strided", "expanded gradient"])
def test_any_memory_layout(layout):
    for pattern in (Causal(), Causal() & Window(33), None, Causal() & (Window(20) | Sink(2))):
        q, k, v = (
            torch.randn(2, 400, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            for seed in range(3)
        )
        views = [x.transpose(1, 2) for x in (q, k, v)]
        if layout == "strided":
            views = [x[..., ::2] for x in views]
        views = [x.detach().requires_grad_() for x in views]
        found, expected = attend(*views, pattern), attend_dense(*views, pattern)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        for a, b in zip(torch.autograd.grad(found.sum(), views), torch.autograd.grad(expected.sum(), views)):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", [None, Causal(), Causal() & Window(33), Blocks(64), Prefix(9)])
def test_half_precision(dtype, pattern):
    q, k, v = draw(1, 4, 2, 600, 600, 16, dtype=dtype)
    out = attend(q, k, v, pattern)
    exact = attend_dense(q.double(), k.double(), v.double(), pattern)
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() < 0.02
    out.sum().backward()
    assert q.grad.dtype == dtype and q.grad.isfinite().all()


def test_all_heads_may_share_one_key_head():
    for pattern in (Causal() & Window(20), Causal(), Blocks(50), CrissCross(size=(20, 20))):
        assert_equal(*draw(2, 6, 1, 400, 400, 8), pattern)
