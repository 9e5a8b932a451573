"""Axial attention: lines as sequences, rows and columns, and the autoregressive order that shifts make."""

import pytest
import torch
from torch import nn

from regardant.grid.axial_transformer import AxialAttention, shift


def made(dim=8, heads=2, *, seed=0, **own):
    torch.manual_seed(seed)
    return AxialAttention(dim, heads, **own).double()


def maps(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 13), (33, 64)])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"axes": 0},
        {"axes": (-1,), "is_causal": True},
        {"combine": "sum", "kv_heads": 1, "bias": True},
        {"axes": (1, 0), "is_causal": (False, True)},
    ],
)
def test_forward_equals_reference_with_gradients(size, own):
    layer, x = made(**own), maps(1, *size, 8)
    far, results = maps(1, *size, 8, seed=2), []
    for run in (layer, layer.reference):
        probe = x.clone().requires_grad_()
        y = run(probe)
        results.append([y, *torch.autograd.grad((y * far).sum(), [probe, *layer.parameters()])])
    for fast, plain in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_along_one_axis_of_a_volume_each_line_stands_alone(axis):
    layer, x = made(axes=axis, rank=3), maps(2, 3, 4, 5, 8)
    y = layer(x)
    along = layer.along[0]
    lines, outs = (t.movedim(axis % 3 + 1, -2).flatten(0, 2) for t in (x, y))
    for line, out in zip(lines, outs):
        torch.testing.assert_close(along.reference(line[None])[0], out, rtol=1e-9, atol=1e-9)


def test_rows_and_then_columns_in_turn_or_summed():
    turn = made(axes=(1, 0))
    rows, columns = made(axes=1), made(axes=0)
    rows.along[0].load_state_dict(turn.along[0].state_dict())
    columns.along[0].load_state_dict(turn.along[1].state_dict())
    x = maps(2, 3, 5, 8)
    torch.testing.assert_close(turn(x), columns(rows(x)), rtol=1e-12, atol=1e-12)
    summed = made(axes=(1, 0), combine="sum")
    summed.load_state_dict(turn.state_dict())
    torch.testing.assert_close(summed(x), rows(x) + columns(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "own",
    [
        {"axes": 1},
        {"axes": 0, "is_causal": True},
        {"axes": (1, 0)},
        {"axes": (1, 0), "is_causal": (False, True)},
        {"axes": (0, 1), "is_causal": True},
        {"axes": (1, 0), "combine": "sum"},
        {"axes": (0, 1), "combine": "sum", "is_causal": (True, False)},
    ],
)
@pytest.mark.parametrize("size", [(3, 4), (1, 5)])
def test_receptive_field_is_what_gradients_reach(own, size):
    layer, n = made(**own), size[0] * size[1]
    x = maps(1, *size, 8).requires_grad_()
    y = layer(x).flatten(0, 2)
    reached = torch.stack(
        [
            torch.autograd.grad(y[at].sum(), x, retain_graph=True)[0].abs().sum(-1).flatten() > 1e-12
            for at in range(n)
        ]
    )
    assert torch.equal(reached, layer.receptive_field(*size).dense(n))


def test_causal_mask_includes_the_diagonal():
    layer, x = made(axes=1, is_causal=True), maps(1, 2, 6, 8)
    changed = x.clone()
    changed[:, :, 3] += 1
    moved = (layer(x) != layer(changed)).any(-1)[0, 0]
    assert moved.tolist() == [False] * 3 + [True] * 3


def test_shift_moves_every_line_on_by_one():
    x = maps(2, 3, 4, 5)
    down, right = shift(x, 1), shift(x, 2)
    assert torch.equal(down[:, 1:], x[:, :-1]) and (down[:, 0] == 0).all()
    assert torch.equal(right[:, :, 1:], x[:, :, :-1]) and (right[:, :, 0] == 0).all()
    assert torch.equal(shift(x, -2), right)


class Raster(nn.Module):
    """The paper's two stacks: whole rows above by way of the outer one, the row so far by the inner."""

    def __init__(self, *, shift_down=True, shift_right=True, late_rows=False):
        super().__init__()
        torch.manual_seed(3)
        self.rows, self.columns = AxialAttention(8, 2, axes=1), AxialAttention(8, 2, axes=0, is_causal=True)
        self.inner = AxialAttention(8, 2, axes=1, is_causal=True)
        self.shift_down, self.shift_right, self.late_rows = shift_down, shift_right, late_rows

    def forward(self, h):
        above = h + self.rows(h)
        above = above + self.columns(above)
        above = shift(above, 1) if self.shift_down else above
        g = (shift(h, 2) if self.shift_right else h) + above
        if self.late_rows:
            g = g + self.rows(g)
        return g + self.inner(g)


def raster_reach(model, size=(3, 4)):
    n = size[0] * size[1]
    h = maps(1, *size, 8).requires_grad_()
    y = model.double()(h).flatten(0, 2)
    rows = [torch.autograd.grad(y[at].sum(), h, retain_graph=True)[0] for at in range(n)]
    return torch.stack([row.abs().sum(-1).flatten() > 1e-12 for row in rows])


def test_shifts_make_the_raster_order_complete():
    """Changing a pixel moves all pixels after it and none up to it."""
    assert torch.equal(raster_reach(Raster()), torch.ones(12, 12, dtype=torch.bool).tril(-1))


def test_without_shift_down_a_row_sees_itself_whole():
    assert raster_reach(Raster(shift_down=False)).triu().any()


def test_without_shift_right_a_pixel_sees_itself():
    assert raster_reach(Raster(shift_right=False)).diagonal().all()


def test_unmasked_rows_are_legal_only_before_the_shift():
    assert raster_reach(Raster(late_rows=True)).triu().any()


def test_pairs_grow_with_the_power_of_three_halves():
    """A line is a sequence: hw positions meet h or w keys each, not hw."""
    layer, met = made(axes=(1, 0)), []
    for along in layer.along:
        along.rule.register_forward_pre_hook(
            lambda _, given: met.append(given[0].shape[0] * given[0].shape[2] * given[1].shape[2])
        )
    layer(maps(1, 8, 8, 8))
    layer(maps(1, 16, 16, 8))
    assert met == [8**3, 8**3, 16**3, 16**3]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AxialAttention(8, 3), "dim=8 does not divide into heads=3"),
        (lambda: AxialAttention(8, 2, kv_heads=3), "kv_heads=3 does not divide heads=2"),
        (lambda: AxialAttention(8, 2, axes=2), "axes is 2, but a map of rank 2"),
        (lambda: AxialAttention(8, 2, axes=()), r"axes is \(\)"),
        (lambda: AxialAttention(8, 2, axes=(1, -1)), "each axis is attended along once"),
        (lambda: AxialAttention(8, 2, is_causal=(True,)), r"is_causal is \(True,\)"),
        (lambda: AxialAttention(8, 2, combine="summ"), "the nearest are sum"),
        (lambda: AxialAttention(8, 2)(torch.zeros(2, 3, 8)), r"\[batch, height, width, channels\]"),
        (lambda: AxialAttention(8, 2)(torch.zeros(2, 3, 3, 9)), "x has width 9"),
        (lambda: AxialAttention(8, 2)(torch.zeros(2, 3, 0, 8)), "holds no position"),
        (lambda: AxialAttention(8, 2)(torch.zeros(2, 3, 3, 8).double()), "x is torch.float64"),
        (lambda: shift(torch.zeros(2, 3, 3, 8), 0), "axis is 0"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
