"""Softmax in parts against softmax over all keys at once."""

from math import inf

import pytest
import torch

from regardant.core import partial_softmax
from regardant.core.partial_softmax import attend_parts, merge, partial_attention, partial_gradients
from regardant.core.pattern import Causal
from regardant.core.tiles import Run, Scattered
from regardant.core.visibility import Visibility
from regardant.core.written import attend_rows


@pytest.fixture(params=["kernel", "plain"])
def backend(request, monkeypatch):
    """The CPU's kernel, and the plain operations that serve every other device."""
    if request.param == "plain":
        monkeypatch.setattr(partial_softmax, "_flash", lambda q: False)
    return request.param


def draw(b, h, g, m, n, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((b, h, m, d), *[(b, g, n, d)] * 2)
    ]


def hidden(mask):
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -inf)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_part_is_attention_with_its_logsumexp(backend, groups):
    q, k, v = draw(2, 4, groups, 37, 53, 8)
    mask = torch.rand(2, 1, 37, 53, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[:, :, 5] = False
    out, lse = partial_attention(q, k, v, hidden(mask), scale=0.3)
    torch.testing.assert_close(out, attend_rows(q, k, v, mask, scale=0.3), atol=1e-9, rtol=1e-9)
    logits = q @ k.repeat_interleave(4 // groups, dim=1).transpose(-1, -2) * 0.3
    torch.testing.assert_close(lse, logits.masked_fill(~mask, -inf).logsumexp(-1), atol=1e-9, rtol=1e-9)
    assert (lse[:, :, 5] == -inf).all() and (out[:, :, 5] == 0).all()


def test_merged_parts_are_one_softmax(backend):
    q, k, v = draw(2, 4, 2, 37, 90, 8)
    mask = torch.rand(2, 4, 37, 90, generator=torch.Generator().manual_seed(1)) < 0.3
    mask[:, :, 3] = False
    mask[:, :, 4, 20:] = False
    cuts = [slice(0, 20), slice(20, 21), slice(21, 90)]
    parts = [partial_attention(q, k[:, :, c], v[:, :, c], hidden(mask[..., c]), scale=0.4) for c in cuts]
    out, lse = merge(parts)
    whole, sums = partial_attention(q, k, v, hidden(mask), scale=0.4)
    torch.testing.assert_close(out, whole, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(lse, sums, atol=1e-9, rtol=1e-9)
    assert (out[:, :, 3] == 0).all()


def test_merging_is_associative(backend):
    q, k, v = draw(1, 2, 2, 9, 30, 4)
    a, b, c = (
        partial_attention(q, k[:, :, s], v[:, :, s], scale=0.5)
        for s in (slice(9), slice(9, 14), slice(14, 30))
    )
    for left, right in zip(merge([merge([a, b]), c]), merge([a, merge([b, c])])):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-12)


def test_shares_of_the_gradient_add_up(backend):
    q, k, v = draw(2, 4, 2, 37, 90, 8)
    mask = torch.rand(37, 90, generator=torch.Generator().manual_seed(1)) < 0.3
    mask[:, 60:] = False
    leaves = [x.requires_grad_() for x in (q, k, v)]
    expected_out = attend_rows(*leaves, mask[None, None], scale=0.4)
    grad = torch.randn(expected_out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad(expected_out, leaves, grad)
    q, k, v = (x.detach() for x in leaves)
    out, lse = partial_attention(q, k, v, hidden(mask), scale=0.4)
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for cut in (slice(0, 31), slice(31, 60), slice(60, 90)):
        part = partial_gradients(
            grad, q, k[:, :, cut], v[:, :, cut], out, lse, hidden(mask[:, cut]), scale=0.4
        )
        grad_q += part[0]
        grad_k[:, :, cut] += part[1]
        grad_v[:, :, cut] += part[2]
    for found, right in zip((grad_q, grad_k, grad_v), expected):
        torch.testing.assert_close(found, right, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sources_share_one_softmax(backend, dtype):
    """Even keys as gathered tiles, odd ones by a masked run: together causal attention."""
    n, tolerance = 64, {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    q, k, v = (x.to(dtype).requires_grad_() for x in draw(2, 4, 2, n, n, 8))
    sees = Visibility(Causal(), None, None, 2, 4, n, n)
    even = torch.arange(0, n, 2).expand(n // 8, -1)
    scattered = Scattered(torch.arange(n).view(-1, 8), even, sees)
    odd = torch.zeros(n, n, dtype=torch.promote_types(dtype, torch.float32))
    odd.masked_fill_((torch.arange(n) % 2 == 0) | (torch.arange(n) > torch.arange(n)[:, None]), -inf)
    out = attend_parts(q, k, v, [[scattered], [Run(0, n, 0, n, addend=odd)]], scale=0.4)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = attend_rows(*exact, torch.ones(1, 1, n, n, dtype=torch.bool).tril(), scale=0.4)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad(expected, exact, grad)
    for found, right in zip(torch.autograd.grad(out, (q, k, v), grad.to(dtype)), expected):
        torch.testing.assert_close(found.double(), right, atol=tolerance, rtol=tolerance)


def test_the_way_back_may_be_cut_otherwise(backend):
    """Two runs of overlapping tiles, other ones backward."""
    n, width = 70, 6
    q, k, v = (x.requires_grad_() for x in draw(2, 2, 1, n, n, 4))

    def cut(rows):
        at = torch.arange(rows + width - 1)
        band = (at >= torch.arange(rows)[:, None]) & (at < torch.arange(rows)[:, None] + width)
        head = torch.zeros(width - 1, width - 1).masked_fill(
            torch.ones(width - 1, width - 1).triu(1) > 0, -inf
        )
        count = (n - width + 1) // rows
        run = Run(width - 1, rows, 0, rows + width - 1, count, addend=hidden(band))
        return [[Run(0, width - 1, 0, width - 1, addend=head.double()), run]]

    out = attend_parts(q, k, v, cut(13), scale=0.4, backward=cut(5))
    apart = torch.arange(n)[:, None] - torch.arange(n)
    expected = attend_rows(q, k, v, ((apart >= 0) & (apart < width))[None, None], scale=0.4)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-9)
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    for found, right in zip(grads, torch.autograd.grad(expected.square().sum(), (q, k, v))):
        torch.testing.assert_close(found, right, atol=1e-9, rtol=1e-9)


def test_nothing_to_merge():
    with pytest.raises(ValueError, match="at least one"):
        merge([])
