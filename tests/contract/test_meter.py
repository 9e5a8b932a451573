"""The meter: work and memory counted, not timed."""

import pytest
import torch
from torch import nn

from regardant.contract.growth import held
from regardant.contract.meter import Meter, exponent
from regardant.core.state import Cache, State


def test_a_product_counts_its_operations_and_its_elements():
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    with Meter() as meter:
        a @ b
    assert meter.work == 2 * 8 * 16 * 4 + 8 * 16 + 16 * 4 + 8 * 4


def test_views_cost_nothing_and_expanded_axes_are_read_once():
    x = torch.ones(10, 1)
    with Meter() as meter:
        y = x.expand(10, 1000)[2:7].transpose(0, 1)
    assert (meter.work, meter.peak) == (0, 0)
    with Meter() as meter:
        y.sum()
    assert meter.work == 5 + 1


def test_the_peak_is_what_was_alive_at_once():
    x = torch.ones(1000)
    with Meter() as meter:
        y = x + 1
        y = y * 2
        del y
        (x + 3).sum()
    assert meter.peak == 2 * 4000
    assert meter.alive == 0


def test_fused_attention_is_quadratic_work_in_linear_memory():
    meters = []
    for n in (512, 2048):
        q = torch.ones(1, 2, n, 8)
        with Meter() as meter:
            nn.functional.scaled_dot_product_attention(q, q, q)
        meters.append(meter)
    assert exponent(meters[0].work, meters[1].work, 4) == pytest.approx(2.0, abs=0.01)
    assert exponent(meters[0].peak, meters[1].peak, 4) == pytest.approx(1.0, abs=0.01)


def test_a_causal_mask_halves_the_work_of_fused_attention():
    q = torch.ones(1, 2, 64, 8)
    with Meter() as full:
        nn.functional.scaled_dot_product_attention(q, q, q)
    with Meter() as half:
        nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert full.work == 2 * half.work


def test_backward_is_counted():
    x = torch.ones(64, 64, requires_grad=True)
    with Meter() as forward:
        y = (x @ x).sum()
    with Meter() as both:
        (x @ x).sum().backward()
    assert y.requires_grad
    assert both.work > 2.5 * forward.work


def test_a_row_of_a_loop_costs_the_whole_in_backward():
    work = []
    for n in (64, 256):
        x = torch.ones(n, 4, requires_grad=True)
        with Meter() as meter:
            torch.stack([x[t] * 2 for t in range(n)]).sum().backward()
        work.append(meter.work)
    assert exponent(work[0], work[1], 4) > 1.8


def test_held_counts_what_a_state_hides():
    state = State(3)
    state.hidden = [torch.zeros(5), {"more": torch.zeros(2, dtype=torch.float64)}]
    assert held(state) == 20 + 16
    assert held((Cache(torch.zeros(1, 6, 2), keep=4), torch.zeros(3))) == 4 * 2 * 4 + 12
    assert held(None) == 0
