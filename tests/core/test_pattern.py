"""Patterns on sequences: what they allow, what they tell of their shape, and their algebra."""

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regardant.core.pattern import (
    And,
    Blocks,
    Causal,
    Dilated,
    Document,
    Everything,
    Not,
    Or,
    Padding,
    Pattern,
    PerHead,
    Prefix,
    Reach,
    Sink,
    Window,
    both,
    split_padding,
)

BATCH, HEADS = 2, 3


def assert_sound(pattern: Pattern, n: int) -> None:
    """Reach, candidates, partition, causality and stationarity say nothing that the mask denies."""
    i = torch.arange(n)
    mask = pattern.block(i, i, batch=BATCH, heads=HEADS)
    seen = mask.any(dim=1).any(dim=0)
    apart = i[:, None] - i
    reach = pattern.reach()
    inside = ((apart <= reach.back) & (apart >= -reach.ahead)) | (i < reach.first)
    assert not (seen & ~inside).any(), f"{pattern} reaches beyond {reach}"
    if pattern.causal:
        assert not seen.triu(1).any(), f"{pattern} calls itself causal"
    found = pattern.candidates(i, n)
    if found is not None:
        real = (found >= 0) & (found < n)
        count = torch.zeros(n, n, dtype=torch.int).scatter_add_(1, found.clamp(0, n - 1), real.int())
        assert count.max() <= 1, f"{pattern} lists a candidate twice"
        assert (count[seen] == 1).all(), f"{pattern} forgets a candidate"
    groups = pattern.partition(n, torch.device("cpu"))
    if groups is not None:
        assert torch.equal(grouped(groups, n), seen) and mask.shape[:2] == (1, 1)
    start = pattern.stationary()
    if start is not None:
        for diagonal in range(-n + 1, n - start):
            line = mask[..., start:].diagonal(diagonal, dim1=-2, dim2=-1)
            assert (line == line[..., :1]).all(), f"{pattern} is not stationary from {start} on"


def grouped(groups, n: int) -> torch.Tensor:
    order, valid = groups.order, groups.valid
    if order is None:
        order = torch.arange(-(-n // groups.size) * groups.size).view(-1, groups.size)
        valid = order < n
    mask = torch.zeros(n, n, dtype=torch.bool)
    for which, row in enumerate(order):
        row = row if valid is None else row[valid[which]]
        mask[row[:, None], row] = True
    return mask


def tensors(of, length):
    return st.lists(of, min_size=length, max_size=length).map(torch.tensor)


def leaves(n: int):
    small = st.integers(1, 7)
    ids = st.integers(0, 3)
    return st.one_of(
        st.just(Causal()),
        st.just(Everything()),
        small.map(Window),
        st.tuples(small, small).map(lambda pair: Dilated(*pair)),
        st.integers(0, 5).map(Sink),
        st.integers(0, 6).map(Prefix),
        tensors(st.integers(0, 6), BATCH).map(Prefix),
        small.map(Blocks),
        tensors(ids, n).map(Document),
        tensors(ids, BATCH * n).map(lambda values: Document(values.view(BATCH, n))),
        tensors(st.booleans(), n).map(Padding),
        tensors(st.booleans(), BATCH * n).map(lambda values: Padding(values.view(BATCH, n))),
    )


def compositions(n: int):
    def larger(inner):
        pair = st.tuples(inner, inner)
        return st.one_of(
            pair.map(lambda both: both[0] & both[1]),
            pair.map(lambda both: both[0] | both[1]),
            inner.map(lambda pattern: ~pattern),
            st.lists(inner, min_size=HEADS, max_size=HEADS).map(PerHead),
        )

    return st.recursive(leaves(n), larger, max_leaves=6)


@st.composite
def drawn(draw, count=1):
    n = draw(st.integers(1, 24))
    return n, *(draw(compositions(n)) for _ in range(count))


@settings(max_examples=200)
@given(drawn())
def test_what_a_pattern_tells_of_its_shape_is_true(case):
    n, pattern = case
    assert_sound(pattern, n)


SIMPLE = [Causal(), Window(3), Dilated(2, 3), Sink(2), Prefix(4), Blocks(4), ~Window(2), Everything()]


@pytest.mark.parametrize("a", SIMPLE, ids=str)
def test_all_small_compositions_tell_the_truth(a):
    for b in SIMPLE:
        for c in SIMPLE:
            for pattern in (a & b & c, a | b | c, a & (b | c), a | (b & c), a & ~(b & c)):
                assert_sound(pattern, 11)


def whole(pattern: Pattern, n: int) -> torch.Tensor:
    i = torch.arange(n)
    return pattern.block(i, i, batch=BATCH, heads=HEADS).expand(BATCH, HEADS, n, n)


@settings(max_examples=60)
@given(drawn(count=3))
def test_algebra(case):
    n, a, b, c = case
    masks = [whole(pattern, n) for pattern in (a, b, c)]
    assert torch.equal(whole(a & b & c, n), masks[0] & masks[1] & masks[2])
    assert torch.equal(whole(a | b | c, n), masks[0] | masks[1] | masks[2])
    assert torch.equal(whole(~a, n), ~masks[0])
    assert torch.equal(whole(~(a & b), n), whole(~a | ~b, n))
    assert torch.equal(whole(~(a | b), n), whole(~a & ~b, n))
    assert torch.equal(whole(a & (b | c), n), whole((a & b) | (a & c), n))
    assert ~~a == a
    if a.causal:
        assert (a & b).causal and (b & a).causal


@settings(max_examples=30)
@given(drawn(), st.integers(0, 9))
def test_mask_mod_is_allows_elementwise(case, at):
    n, pattern = case
    mask, at = whole(pattern, n), torch.tensor(at % n)
    for batch in range(BATCH):
        for head in range(HEADS):
            got = pattern.mask_mod(torch.tensor(batch), torch.tensor(head), at, torch.arange(n))
            assert torch.equal(got.expand(n), mask[batch, head, at])


def rows(pattern, n=6, **shape):
    return [row.nonzero().flatten().tolist() for row in pattern.dense(n, **shape)]


def test_members_by_hand():
    assert rows(Causal(), 3) == [[0], [0, 1], [0, 1, 2]]
    assert rows(Window(2), 4) == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
    assert rows(Causal() & Window(2), 4) == [[0], [0, 1], [1, 2], [2, 3]]
    assert rows(Dilated(2, 3), 7)[3] == [0, 3, 6]
    assert rows(Causal() & Dilated(3, 2), 7)[6] == [2, 4, 6]
    assert rows(Sink(2), 4) == [[0, 1]] * 4
    assert rows(Prefix(2), 4) == [[0, 1], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert rows(Blocks(2), 5) == [[0, 1], [0, 1], [2, 3], [2, 3], [4]]
    assert rows(Document(torch.tensor([0, 0, 1, 1])), 4) == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert rows(Padding(torch.tensor([True, False, True])), 3) == [[0, 2]] * 3
    assert rows(Causal() & (Window(2) | Sink(1)), 4) == [[0], [0, 1], [0, 1, 2], [0, 2, 3]]
    assert rows(~Causal(), 3) == [[1, 2], [2], []]
    assert rows(Everything(), 2) == [[0, 1], [0, 1]]


def test_reach_by_hand():
    assert Causal().reach() == Reach(inf, 0, 0)
    assert Window(4).reach() == Reach(3, 3, 0)
    assert (Causal() & Window(4)).reach() == Reach(3, 0, 0)
    assert (Causal() & (Window(4) | Sink(2))).reach() == Reach(3, 0, 2)
    assert (Causal() & Dilated(3, 4)).reach() == Reach(8, 0, 0)
    assert (~Window(4)).reach() == Reach(inf, inf, 0)


def test_first_keys_do_not_hide_the_band_of_another():
    """In Window & Sink, a first key stays visible to every query whose window holds it."""
    assert rows(Window(5) & Sink(3), 8)[4] == [0, 1, 2]
    assert_sound(Window(5) & Sink(3), 8)
    assert_sound(Sink(3) & Window(2) & Prefix(4), 8)


def test_rectangles_and_offsets():
    """Queries that stand behind a cache see what the same queries see in the whole sequence."""
    pattern = Causal() & (Window(3) | Sink(1))
    assert torch.equal(pattern.dense(2, 9, offset=7), pattern.dense(9)[7:])
    assert pattern.dense(3, 5).shape == (3, 5)
    assert torch.equal(pattern.dense(3, 5), pattern.dense(5)[:3])


def test_samples_that_differ():
    ids = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    mask = Document(ids).dense(4, batch=2)
    assert mask.shape == (2, 1, 4, 4)
    assert torch.equal(mask[:, 0], ids[:, :, None] == ids[:, None, :])
    prefix = Prefix(torch.tensor([1, 3]))
    assert prefix.by_batch and not prefix.by_head
    assert prefix.dense(4, batch=2)[:, 0, 0].tolist() == [
        [True, False, False, False],
        [True, True, True, False],
    ]
    with pytest.raises(ValueError, match="Document differs by sample: allows needs batch="):
        Document(ids).allows(torch.tensor(0), torch.tensor(1))
    with pytest.raises(ValueError, match="Prefix differs by sample"):
        prefix.allows(torch.tensor(0), torch.tensor(1))


def test_heads_that_differ():
    pattern = PerHead([Causal(), Window(1), Everything()])
    mask = pattern.dense(4, heads=3)
    assert mask.shape == (3, 4, 4)
    for head, own in enumerate((Causal(), Window(1), Everything())):
        assert torch.equal(mask[head], own.dense(4))
    assert not pattern.causal and PerHead([Causal(), Causal() & Window(2)]).causal
    with pytest.raises(ValueError, match="PerHead differs by head: allows needs head="):
        pattern.allows(torch.tensor(0), torch.tensor(1))


@pytest.mark.parametrize(
    "composed", [lambda p: p, lambda p: p & Causal(), lambda p: Window(2) | p, lambda p: ~p]
)
def test_as_many_heads_as_patterns(composed):
    with pytest.raises(ValueError, match="PerHead has 2 patterns, but there are 4 heads"):
        composed(PerHead([Causal(), Window(2)])).dense(5, heads=4)


def test_heads_and_samples_that_differ():
    padding = Padding(torch.tensor([[True, True, False], [False, True, True]]))
    mask = (PerHead([Causal(), Everything()]) & padding).dense(3, batch=2, heads=2)
    assert mask.shape == (2, 2, 3, 3)
    assert torch.equal(mask[1, 0], Causal().dense(3) & torch.tensor([False, True, True]))


def test_block_takes_tiles_of_positions():
    pattern = Causal() & Window(4)
    i, j = torch.arange(12).view(3, 4), torch.arange(9, 15).expand(3, 6) - 9
    mask = pattern.block(i, j)
    assert mask.shape == (1, 1, 3, 4, 6)
    assert torch.equal(mask[0, 0, 1], pattern.dense(12)[4:8, :6])


def test_conjunctions_and_disjunctions_are_flat():
    pattern = Causal() & Window(3) & Sink(1)
    assert isinstance(pattern, And) and pattern.patterns == (Causal(), Window(3), Sink(1))
    pattern = Causal() | Window(3) | Sink(1)
    assert isinstance(pattern, Or) and len(pattern.patterns) == 3
    assert isinstance(~Causal(), Not)
    assert Window(3) == Window(3) and hash(Window(3)) == hash(Window(3))


def test_padding_can_be_split_off():
    real, more = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    rest, mask = split_padding(Causal() & Padding(real) & Padding(more))
    assert rest == Causal() and mask.tolist() == [True, False, False]
    assert split_padding(None) == (None, None)
    assert split_padding(Window(2)) == (Window(2), None)
    rest, mask = split_padding(Everything() & Padding(real))
    assert rest is None and torch.equal(mask, real)
    rest, mask = split_padding(Causal() & Window(2) & Padding(real))
    assert rest == Causal() & Window(2)
    assert both(None, None) is None and both(None, Causal()) == Causal()
    assert both(Causal(), Window(2)) == Causal() & Window(2)


def test_a_sequence_pattern_is_what_it_is_at_any_size():
    pattern = PerHead([Causal(), ~Window(2)])
    assert torch.equal(pattern.on(5).dense(5, heads=2), pattern.dense(5, heads=2))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Window(0), "width is 0, but a window holds at least its own position"),
        (lambda: Dilated(0, 1), "width is 0"),
        (lambda: Dilated(1, 0), "dilation is 0, but steps are at least 1"),
        (lambda: Sink(-1), "count is -1"),
        (lambda: Prefix(-1), "length is -1"),
        (lambda: Blocks(0), "size is 0"),
        (lambda: PerHead([]), "patterns is empty"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_mask_mod_serves_flex_attention_as_it_is():
    from torch.nn.attention.flex_attention import create_block_mask

    pattern = Causal() & (Window(40) | Sink(3))
    made = create_block_mask(pattern.mask_mod, 1, 1, 256, 256, device="cpu", BLOCK_SIZE=64)
    blocks = pattern.dense(256).view(4, 64, 4, 64).any(dim=3).any(dim=1)
    assert torch.equal(made.to_dense()[0, 0].bool(), blocks)
