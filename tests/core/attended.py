"""Operands of attention, and a plan's output and gradients held against the plain equation's."""

import torch

from regardant.core.plan import attend, attend_dense


def draw(b, h, g, m, n, d, e=None, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (b, h, m, d), (b, g, n, d), (b, g, n, e or d)
    return [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def assert_equal(q, k, v, pattern, *, tolerance=1e-9, extra=(), **options):
    """Output and all gradients equal the plain equation's."""
    plan = options.pop("plan", None)
    inputs = [q, k, v, *extra]
    found = attend(q, k, v, pattern, plan=plan, **options)
    expected = attend_dense(q, k, v, pattern, **options)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    with torch.no_grad():
        if not options.get("normaliser"):
            again = attend(q, k, v, pattern, plan=plan, **options)
            torch.testing.assert_close(again, expected, atol=tolerance, rtol=tolerance)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=expected.dtype)
    grads = torch.autograd.grad((found * weight).sum(), inputs)
    for found, right in zip(grads, torch.autograd.grad((expected * weight).sum(), inputs)):
        assert found.isfinite().all()
        torch.testing.assert_close(found, right, atol=tolerance, rtol=tolerance)
