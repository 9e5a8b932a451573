"""Relative attention with a way back of its own: against the equation."""

import pytest
import torch

from regardant.core import relative_causal as module
from regardant.core.relative_causal import relative_causal


def plain(q, k, v, table, scale):
    n = q.shape[2]
    at = torch.arange(n)
    row = (at - at[:, None] + table.shape[1] - 1).clamp(0, table.shape[1] - 1)
    logits = q @ k.mT + torch.einsum("bhid,hijd->bhij", q, table[:, row].expand(q.shape[1], -1, -1, -1))
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    return (logits * scale).masked_fill(later, -torch.inf).softmax(-1) @ v


def relative(q, k, v, table, scale):
    return relative_causal(q * scale, q * scale, k, v, table)


def operands(n, distances, shared=False, batch=2, heads=3):
    generator = torch.Generator().manual_seed(n + distances)
    shapes = [(batch, heads, n, 8), (batch, heads, n, 8), (batch, heads, n, 6)]
    shapes.append((1 if shared else heads, distances, 8))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("n", "distances"), [(1, 5), (7, 5), (33, 64), (40, 40), (50, 1)])
@pytest.mark.parametrize("rows", [256, 16, 7])
@pytest.mark.parametrize("kept", [0, 2**22])
@pytest.mark.parametrize("short", [0, 64])
def test_output_and_gradients_are_the_equations(monkeypatch, n, distances, rows, kept, short):
    monkeypatch.setattr(module, "SHORT", short)
    monkeypatch.setattr(module, "ROWS", (rows, rows))
    monkeypatch.setattr(module, "KEPT", kept)
    for shared, batch in ((False, 2), (True, 1)):
        given = operands(n, distances, shared, batch)
        q, k, v, table = given
        right = plain(*given, 0.3)
        direction = torch.randn(right.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        wanted = torch.autograd.grad(right, given, direction)
        for found in (relative(*given, 0.3), relative_causal(q, None, k, v, table, scale=0.3)):
            torch.testing.assert_close(found, right, rtol=0, atol=1e-9)
            for one, other in zip(torch.autograd.grad(found, given, direction), wanted):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_memory_that_was_used_before_leaves_no_trace(monkeypatch):
    """What is not written is masked or zero, whatever the memory held."""
    monkeypatch.setattr(module, "SHORT", 0)
    given = operands(30, 30)
    first = relative(*given, 0.3)
    for _ in range(5):
        spoiled = torch.full((6 * 30 * 31,), torch.nan, dtype=torch.float64)
        del spoiled
        again = relative(*given, 0.3)
        assert torch.equal(again, first)
        assert all(each.isfinite().all() for each in torch.autograd.grad(again.sum(), given))


def test_half_precision_keeps_its_type():
    given = [x.detach().bfloat16().requires_grad_() for x in operands(40, 20)]
    found = relative(*given, 0.3)
    exact = relative(*(x.float() for x in given), 0.3)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-2)
    assert all(each.dtype == torch.bfloat16 for each in torch.autograd.grad(found.sum(), given))
