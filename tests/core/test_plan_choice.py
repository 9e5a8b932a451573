"""Which plan is chosen, what it holds and computes, and what it says where it cannot be."""

import pytest
import torch
from torch import nn

from regardant.core.grid_pattern import Axial, CrissCross, Window2d
from regardant.core.neighborhood import Neighborhood
from regardant.core.pattern import (
    Blocks,
    Causal,
    Dilated,
    Padding,
    Prefix,
    Sink,
    Window,
)
from regardant.core.plan import attend, explain
from tests.core.attended import assert_equal, draw


def test_which_plan():
    assert explain(None, 4096).name == "fused"
    assert explain(Causal() & Padding(torch.ones(4096, dtype=torch.bool)), 4096).name == "fused"
    assert explain(Causal() & Window(256), 16_384, heads=8).name == "banded"
    assert explain(Causal() & (Window(256) | Sink(4)), 16_384).name == "banded"
    assert explain(Blocks(128), 16_384).name == "partition"
    assert explain(Window2d(window=7).on(56, 56), 56 * 56).name == "partition"
    assert explain(CrissCross().on(64, 64), 4096).name == "partition"
    assert explain(Neighborhood(kernel=7).on(56, 56), 56 * 56).name == "banded"
    assert explain(Causal() & Dilated(16, 512), 16_384).name == "gather"
    assert explain(Prefix(100), 4096).name == "dense"
    assert explain(Causal() & Window(25), 64).name == "dense"
    assert explain(Prefix(100), 4096, device="cuda").name == "flex"


def test_the_pairs_of_a_band_grow_with_the_length():
    short, long = (explain(Causal() & (Window(128) | Sink(4)), n) for n in (4096, 32_768))
    assert long.pairs / short.pairs < 8.3
    assert short.total == 4096**2
    assert "keys lie within 128 positions" in str(short)


class Memory(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor that any operation makes, in elements."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor) and x.numel():
                self.largest = max(
                    self.largest, min(x.numel(), x.untyped_storage().nbytes() // x.element_size())
                )
        return result


@pytest.mark.parametrize(
    "pattern",
    [Causal() & Window(16), Causal() & Padding(torch.ones(2, 2048, dtype=torch.bool)), Prefix(7), Blocks(32)],
)
def test_no_plan_ever_holds_all_pairs(pattern):
    n = 2048
    q, k, v = draw(2, 2, 1, n, n, 4, dtype=torch.float32)
    with Memory() as memory:
        attend(q, k, v, pattern).sum().backward()
    assert memory.largest < n * n


@pytest.mark.parametrize(
    ("plan", "pattern", "words"),
    [
        ("fused", Window(3), "neither causal alone nor everything"),
        ("banded", Causal(), "no bound on how far"),
        ("partition", Causal(), "not made of groups"),
        ("gather", Causal(), "lists no keys"),
        ("flex", Causal(), "no gradients on a CPU"),
        ("bandd", Causal(), "the nearest are banded"),
    ],
)
def test_a_plan_that_cannot_be_says_why(plan, pattern, words):
    with pytest.raises(ValueError, match=words):
        attend(*draw(1, 2, 2, 20, 20, 4), pattern, plan=plan)


def test_wrong_shapes():
    q, k, v = draw(1, 4, 3, 20, 20, 4)
    with pytest.raises(ValueError, match="must divide"):
        attend(q, k, v)
    with pytest.raises(ValueError, match="must agree"):
        attend(q, k, v[:, :, :5])
    with pytest.raises(ValueError, match="bound to a grid of"):
        attend(q, k[:, :2], v[:, :2], Axial(size=(3, 3)))
    with pytest.raises(ValueError, match="the padding is"):
        attend(q, k[:, :2], v[:, :2], Padding(torch.ones(1, 5, dtype=torch.bool)))


class Distance(nn.Module):
    """A bias of the user's own, which says nothing of being stationary."""

    def block(self, i, j):
        return -0.1 * (i[:, None] - j[None, :]).abs().double()[None]


def test_a_bias_that_does_not_say_that_it_is_stationary():
    assert_equal(*draw(1, 2, 2, 200, 200, 8), Causal() & Window(20), bias=Distance(), plan="banded")


def test_a_window_wider_than_the_sequence_is_none():
    assert explain(Causal() & Window(600), 600).name == "fused"
    assert explain(Window(4096), 4096).name == "fused"
    assert explain(Causal() & Window(599), 600, heads=8).name != "fused"
    assert_equal(*draw(1, 2, 1, 90, 90, 8), Causal() & Window(90))


def test_sinks_alone_cost_only_themselves():
    assert explain(Sink(3), 4096).pairs == 3 * 4096
