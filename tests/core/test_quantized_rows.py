"""Rows in few bits."""

import pytest
import torch

from regardant.core.quantized_rows import QuantizedRows, on_grid


def rows(n=12, d=7, seed=0):
    return torch.randn(2, 3, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_row_and_a_channel_by_hand():
    x = torch.tensor([[0.0, 3.0, 1.0], [1.0, 1.2, 2.0]], dtype=torch.float64)
    by_row = on_grid(x, 2, None)
    torch.testing.assert_close(by_row, torch.tensor([[0, 3, 1], [1, 4 / 3, 2]]).double())
    by_channel = on_grid(x, 1, 2)
    torch.testing.assert_close(by_channel, x)  # two rows are the ends of their channel's grid
    assert on_grid(torch.full((2, 3), 5.0), 4, None).eq(5).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("group", [None, 4])
def test_errors_are_half_a_step_and_what_is_kept_is_the_grid(bits, group):
    x = rows()
    near = on_grid(x, bits, group)
    parts, axis = (x[..., None, :], -1) if group is None else (x.unflatten(-2, (-1, group)), -2)
    step = (parts.amax(axis) - parts.amin(axis)) / (2**bits - 1)
    error = (near - x).view_as(parts).abs().amax(axis)
    assert (error <= step / 2 + 1e-12).all()
    kept = QuantizedRows.of(x, bits, group)
    torch.testing.assert_close(kept.values(), near, rtol=0, atol=1e-12)
    assert kept.codes.dtype == torch.uint8 and kept.codes.shape[-1] == -(-7 * bits // 8)
    assert torch.equal(QuantizedRows.of(kept.values(), bits, group).codes, kept.codes)


@pytest.mark.parametrize("group", [None, 4])
def test_parts_and_their_sum(group):
    x = rows()
    whole = QuantizedRows.of(x, 2, group)
    first, rest = whole.part(0, 4), whole.part(4, 12)
    assert (first.length, rest.length, whole.part(0, 0).length) == (4, 8, 0)
    torch.testing.assert_close(first.append(rest).values(), whole.values(), rtol=0, atol=0)
    torch.testing.assert_close(
        whole.part(0, 0).append(rest).values(), whole.values()[:, :, 4:], rtol=0, atol=0
    )


def test_the_state_is_a_state():
    kept = QuantizedRows.of(rows(), 4, 4)
    chosen = kept.select(torch.tensor([1, 1, 0]))
    torch.testing.assert_close(chosen.values(), kept.values()[[1, 1, 0]], rtol=0, atol=0)
    assert kept.nbytes == 2 * 3 * (12 * 4 + 2 * 3 * 7 * 8)


def test_gradients_pass():
    x = rows().requires_grad_()
    on_grid(x, 2, 4).sum().backward()
    assert x.grad.eq(1).all()


def test_odd_bits_are_refused():
    with pytest.raises(ValueError, match="bits is 3"):
        on_grid(rows(), 3, None)
