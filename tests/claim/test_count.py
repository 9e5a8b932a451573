"""Counted costs against those worked out by hand."""

import torch
import torch.nn.functional as F
from torch import nn

from regardant.claim.count import flops, parameters, peak_bytes


def test_operations_of_products_and_fused_attention():
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7
    q, k, v = torch.zeros(2, 4, 10, 8), torch.zeros(2, 4, 12, 8), torch.zeros(2, 4, 12, 8)
    assert flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * 2 * 4 * 10 * 12 * (8 + 8)


def test_operations_of_fused_attention_backward():
    q, k, v = (torch.zeros(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    products = 2 + 5
    assert flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()) == (
        products * 2 * 2 * 16 * 16 * 8
    )


def test_peak_counts_what_is_held_at_once():
    x = torch.zeros(250_000)
    million = 1_000_000

    def hold_two():
        y = x + 1
        z = y + 1
        del y
        return z + 1

    assert abs(peak_bytes(hold_two) - 2 * million) < 1000
    assert abs(peak_bytes(lambda: [x + 1 for _ in range(3)]) - 3 * million) < 1000


def test_parameters():
    assert parameters(nn.Linear(3, 4)) == 16
