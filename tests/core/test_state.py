"""Decoding states: caches that fork, keep and grow, and states that are mapped as a whole."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from regardant.core.state import Cache, State


def row(*values, width=3):
    """One row a value [1, 2, r, width], the second head shifted by a half."""
    rows = torch.tensor(values, dtype=torch.float64)[:, None].expand(-1, width)
    return torch.stack([rows, rows + 0.5])[None]


def held(cache):
    """The first head's values."""
    return cache.rows[0, 0, :, 0].tolist()


@pytest.fixture(params=[False, True], ids=["rows", "upright"])
def empty(request):
    return lambda **own: Cache(torch.empty(1, 2, 0, 3, dtype=torch.float64), upright=request.param, **own)


@torch.no_grad()
def test_rows_come_in_order_and_may_come_several_at_once(empty):
    cache = empty()
    assert held(cache) == []
    for values in ((0.0,), (1.0, 2.0), (3.0,)):
        cache = cache.append(row(*values))
    assert held(cache) == [0, 1, 2, 3]
    assert torch.equal(cache.rows, row(0.0, 1.0, 2.0, 3.0))


@torch.no_grad()
def test_forks_never_see_their_siblings(empty):
    trunk = empty().append(row(0.0)).append(row(1.0))
    left = trunk.append(row(2.0))
    right = trunk.append(row(20.0))
    assert (held(trunk), held(left), held(right)) == ([0, 1], [0, 1, 2], [0, 1, 20])
    left, further = left.append(row(3.0)), left.append(row(30.0))
    right = right.append(row(21.0))
    late = trunk.append(row(200.0))
    assert held(left) == [0, 1, 2, 3] and held(further) == [0, 1, 2, 30]
    assert held(right) == [0, 1, 20, 21] and held(late) == [0, 1, 200] and held(trunk) == [0, 1]


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 2, 5])
def test_keep_holds_just_the_last_rows_in_bounded_room(empty, keep):
    cache, rooms = empty(keep=keep), set()
    for value in range(40):
        cache = cache.append(row(float(value)))
        assert held(cache) == list(range(max(0, value + 1 - keep), value + 1))
        rooms.add(cache.storage.shape[-2])
    assert max(rooms) <= 2 * keep + 1


@torch.no_grad()
def test_forks_of_a_cache_that_keeps(empty):
    trunk = empty(keep=3)
    for value in range(7):
        trunk = trunk.append(row(float(value)))
    left, right = trunk, trunk
    for step in range(1, 9):
        left, right = left.append(row(100.0 + step)), right.append(row(200.0 + step))
        ends = [[4, 5, 6, *(base + s for s in range(1, step + 1))][-3:] for base in (100, 200)]
        assert [held(left), held(right)] == ends
    assert held(trunk) == [4, 5, 6]


@torch.no_grad()
def test_growing_costs_amortised_constant(empty):
    """Storage is made anew a logarithmic number of times, not once a row."""
    cache, storages = empty(), set()
    for value in range(1000):
        cache = cache.append(row(float(value)))
        storages.add(cache.storage.data_ptr())
    assert len(storages) <= 10
    cache, copies, before = empty(keep=50), 0, None
    for value in range(1000):
        cache = cache.append(row(float(value)))
        copies += cache.storage is not before
        before = cache.storage
    assert copies <= 1000 / 50 + 5


def test_gradients_flow_through_every_row(empty):
    rows = [row(float(value)).requires_grad_() for value in range(4)]
    cache = empty(keep=3)
    for each in rows:
        cache = cache.append(each)
    (cache.rows * torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)[:, None]).sum().backward()
    assert rows[0].grad is None or (rows[0].grad == 0).all()
    assert [each.grad[0, 0, 0, 0].item() for each in rows[1:]] == [1, 10, 100]


def test_rows_that_a_backward_pass_needs_are_not_written_over(empty):
    """A query that learns over keys that do not: autograd holds on to the rows of every step."""
    query = torch.ones(3, dtype=torch.float64, requires_grad=True)
    cache, total = empty(), 0
    for value in range(1, 4):
        cache = cache.append(row(float(value)))
        total = total + (cache.rows[0, 0] @ query).square().sum()
    total.backward()
    expected = sum(2 * 3 * v * v for step in range(1, 4) for v in range(1, step + 1))
    assert query.grad.tolist() == [expected] * 3


def test_a_row_of_another_batch_is_refused(empty):
    cache = Cache(torch.empty(2, 2, 0, 3))
    with pytest.raises(
        ValueError, match=r"the new row is \[1, 2, 1, 3\], but this state holds \[2, 2, 0, 3\]"
    ):
        cache.append(torch.zeros(1, 2, 1, 3))


@dataclass
class Inner(State):
    total: Tensor


@dataclass
class Outer(State):
    keys: Cache
    inner: Inner
    several: tuple[Tensor, Tensor]
    real: Tensor | None = None
    label: str = "kept"


def outer():
    storage = torch.arange(2 * 1 * 4 * 3, dtype=torch.float32).view(2, 1, 4, 3)
    total = torch.tensor([[1.0], [2.0]], requires_grad=True)
    several = (torch.zeros(2, 5), torch.tensor([[True], [False]]))
    return Outer(7, Cache(storage, end=3), Inner(7, total * 2), several)


def test_select_reaches_everything_and_leaves_the_rest():
    state = outer()
    chosen = state.select(torch.tensor([1, 1, 0]))
    assert chosen.length == 7 and chosen.inner.length == 7 and chosen.label == "kept" and chosen.real is None
    assert chosen.inner.total[:, 0].tolist() == [4, 4, 2]
    assert torch.equal(chosen.keys.rows, state.keys.rows[[1, 1, 0]])
    assert chosen.several[1][:, 0].tolist() == [False, False, True]
    assert state.inner.total[:, 0].tolist() == [2, 4]


@torch.no_grad()
def test_a_selected_state_goes_on_by_itself():
    state = outer()
    beam = state.select(torch.tensor([0, 0]))
    grown = beam.keys.append(torch.full((2, 1, 1, 3), -1.0))
    assert grown.rows.shape == (2, 1, 4, 3) and (grown.rows[:, :, 3] == -1).all()
    assert (state.keys.storage[:, :, 3] != -1).all()


def test_detach_to_and_map():
    state = outer()
    assert state.inner.total.requires_grad and not state.detach().inner.total.requires_grad
    double = state.to(torch.float64)
    assert double.inner.total.dtype == double.keys.rows.dtype == torch.float64
    assert state.inner.total.dtype == torch.float32
    negative = state.map(lambda tensor: ~tensor if tensor.dtype == torch.bool else -tensor)
    assert torch.equal(negative.keys.rows, -state.keys.rows)
    assert isinstance(negative, Outer) and isinstance(negative.inner, Inner)


def test_bytes_count_rows_and_not_the_room_behind_them():
    rows, total, several = 2 * 3 * 3 * 4, 2 * 4, 2 * 5 * 4 + 2
    assert outer().nbytes == rows + total + several
    assert State(3).nbytes == 0


@torch.no_grad()
def test_upright_rows_lie_channel_by_channel(empty):
    cache = empty().append(row(0.0, 1.0)).append(row(2.0))
    along = -2 if cache.upright else -1
    assert cache.rows.stride(along) == 1
    assert cache.map(lambda rows: rows + 1).append(row(9.0)).rows.stride(along) == 1
