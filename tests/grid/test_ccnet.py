"""Criss-cross attention: one softmax over row and column, twice with the same weights."""

import pytest
import torch
from torch import nn

from regardant.grid.ccnet import CrissCrossAttention, criss_cross


def made(dim=16, heads=1, *, gamma=0.7, seed=0, **own):
    torch.manual_seed(seed)
    layer = CrissCrossAttention(dim, heads, **own).double()
    nn.init.constant_(layer.gamma, gamma)
    return layer


def maps(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SIZES = [(1, 1), (1, 9), (9, 1), (7, 13), (33, 64)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("heads", [1, 2])
def test_forward_equals_reference_with_gradients(size, heads):
    layer, x = made(heads=heads), maps(2, *size, 16)
    far, results = maps(2, *size, 16, seed=2), []
    for run in (layer, layer.reference):
        probe = x.clone().requires_grad_()
        y = run(probe)
        results.append([y, *torch.autograd.grad((y * far).sum(), [probe, *layer.parameters()])])
    for fast, plain in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_equation_one_position_at_a_time():
    layer, x = made(dim=8, recurrence=1), maps(1, 4, 5, 8)
    y = layer(x)
    q, k, v = (to(x[0]) for to in (layer.to_q, layer.to_k, layer.to_v))
    for row in range(4):
        for column in range(5):
            cross = [(row, c) for c in range(5)] + [(r, column) for r in range(4) if r != row]
            assert len(cross) == 4 + 5 - 1
            weights = torch.stack([q[row, column] @ k[at] for at in cross]).softmax(0)
            heard = sum(weight * v[at] for weight, at in zip(weights, cross))
            expected = 0.7 * heard + x[0, row, column]
            torch.testing.assert_close(y[0, row, column], expected, rtol=1e-9, atol=1e-9)


def test_one_softmax_and_not_two():
    """Equal logits: every one of the h + w - 1 keys weighs the same. Row and column softmaxes would not."""
    v = maps(1, 1, 3, 5, 1)
    nothing = torch.zeros(1, 1, 3, 5, 2, dtype=torch.float64)
    out = criss_cross(nothing, nothing, v)[0, 0, :, :, 0]
    seen = v[0, 0, :, :, 0]
    expected = (seen.sum(1, keepdim=True) + seen.sum(0, keepdim=True) - seen) / 7
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    apart = (seen.mean(1, keepdim=True) + seen.mean(0, keepdim=True)) / 2
    assert not torch.allclose(out, apart)


def test_own_position_counts_once():
    """A value only at the position itself: it gets one share in h + w - 1, and two if counted twice."""
    v = torch.zeros(1, 1, 4, 6, 1, dtype=torch.float64)
    v[0, 0, 2, 3] = 1
    nothing = torch.zeros(1, 1, 4, 6, 2, dtype=torch.float64)
    assert criss_cross(nothing, nothing, v)[0, 0, 2, 3, 0].item() == pytest.approx(1 / 9, abs=1e-12)


def test_logits_are_not_scaled():
    layer = made(dim=32, recurrence=1)
    x = maps(1, 1, 2, 32)
    q, k, v = (to(x[0, 0]) for to in (layer.to_q, layer.to_k, layer.to_v))
    expected = 0.7 * ((q @ k.T).softmax(-1) @ v) + x[0, 0]
    torch.testing.assert_close(layer(x)[0, 0], expected, rtol=1e-9, atol=1e-9)


def test_gamma_begins_at_zero_and_then_only_gamma_learns():
    layer, x = CrissCrossAttention(16).double(), maps(2, 3, 4, 16)
    assert torch.equal(layer(x), x)
    layer(x).square().sum().backward()
    assert layer.gamma.grad.abs().item() > 0
    for to in (layer.to_q, layer.to_k, layer.to_v):
        assert (to.weight.grad == 0).all()


def test_recurrences_share_their_weights():
    once, twice = made(recurrence=1), made(recurrence=2)
    assert [p.shape for p in once.parameters()] == [p.shape for p in twice.parameters()]
    x = maps(1, 5, 6, 16)
    torch.testing.assert_close(twice(x), once(once(x)), rtol=1e-12, atol=1e-12)


def reached(layer, size, at):
    x = maps(1, *size, layer.dim).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0, *at].sum(), x)
    return gradient[0].abs().sum(-1) > 0


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (5, 4)])
def test_once_reaches_the_cross_and_twice_everything(size):
    at = (size[0] // 2, size[1] // 3)
    layer = made(recurrence=1)
    position = at[0] * size[1] + at[1]
    cross = layer.receptive_field(*size).dense(size[0] * size[1])[position].view(size)
    assert int(cross.sum()) == sum(size) - 1
    assert torch.equal(reached(layer, size, at), cross)
    assert reached(made(recurrence=2), size, at).all()
    assert made(recurrence=2).receptive_field(*size) is None


def test_queries_and_keys_are_eight_times_narrower():
    layer = CrissCrossAttention(64)
    assert layer.to_q.weight.shape == layer.to_k.weight.shape == (8, 64)
    assert layer.to_v.weight.shape == (64, 64)
    assert CrissCrossAttention(4, reduction=8).to_q.weight.shape == (1, 4)


def test_multiplications_against_a_non_local_block():
    """Of the attention itself: (h + w - 1) / hw of the pairs, give or take the column's own ones."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = CrissCrossAttention(16, recurrence=1)
    x = torch.randn(1, 48, 48, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    projections = 2 * 48 * 48 * 16 * (2 + 2 + 16)
    non_local = 2 * (48 * 48) ** 2 * (2 + 16)
    assert (counter.get_total_flops() - projections) / non_local == pytest.approx(96 / 48**2, rel=1e-6)


def test_samples_never_meet():
    layer, x = made(), maps(2, 4, 5, 16)
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=1e-12, atol=1e-12)


def test_large_logits_stay_finite():
    layer, x = made(), 1e3 * maps(1, 5, 6, 16).requires_grad_()
    y = layer(x)
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), list(layer.parameters())))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: CrissCrossAttention(10, 3), "heads=3 does not divide dim=10"),
        (lambda: CrissCrossAttention(0), "dim is 0"),
        (lambda: CrissCrossAttention(8, reduction=0), "reduction is 0"),
        (lambda: CrissCrossAttention(8, recurrence=0), "recurrence is 0"),
        (lambda: CrissCrossAttention(8)(torch.zeros(2, 3, 8)), r"\[batch, height, width, channels\]"),
        (lambda: CrissCrossAttention(8)(torch.zeros(2, 3, 3, 9)), "x has width 9"),
        (lambda: CrissCrossAttention(8)(torch.zeros(2, 3, 0, 8)), "holds no position"),
        (lambda: CrissCrossAttention(8)(torch.zeros(2, 3, 3, 8).double()), "x is torch.float64"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
