"""Softplus attention with re-weighting: its two stages, and the dossier's pitfalls."""

import pytest
import torch

from regardant import create
from regardant.sequence.softplus_attention_lssa import SoftplusRule


def weights(logits, *, mask=None, **own):
    mask = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    return SoftplusRule(16, **own).normalise(logits.masked_fill(~mask, float("-inf")), mask)


def test_what_is_below_an_even_share_gets_nothing():
    found = weights(torch.tensor([[2.0, 0.0, -1.0, -2.0]]))
    assert found[0, 0] == pytest.approx(1.0)
    assert (found[0, 1:] == 0).all()


def test_an_even_row_and_a_single_key_fall_back_to_the_first_stage():
    torch.testing.assert_close(weights(torch.full((1, 5), 0.7)), torch.full((1, 5), 0.2))
    torch.testing.assert_close(weights(torch.tensor([[-3.0]])), torch.ones(1, 1))


def test_very_negative_rows_stay_finite_where_a_plain_softplus_is_zero():
    logits = torch.tensor([[-300.0, -301.0, -302.0]], requires_grad=True)
    found = weights(logits, power=None)
    found[0, 1].backward()
    found = found.detach()
    assert found.sum() == pytest.approx(1.0)
    assert torch.isfinite(logits.grad).all()


def test_a_big_power_neither_overflows_nor_vanishes():
    found = weights(torch.tensor([[9.0, 8.9] + [-4.0] * 4000]), power=200.0)
    assert found.sum() == pytest.approx(1.0, abs=1e-5)


def test_the_count_of_keys_leaves_out_what_is_masked():
    logits = torch.tensor([[0.5, -0.2, 3.0]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(
        weights(logits, mask=mask, power=None)[:, :2], weights(logits[:, :2], power=None)
    )


def test_padding_changes_neither_count_nor_output():
    layer = create("softplus-attention-lssa", dim=32, heads=4).double()
    x = torch.randn(2, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padding = torch.arange(9).expand(2, -1) < 6
    torch.testing.assert_close(layer(x, padding=padding)[:, :6], layer(x[:, :6]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("own", "word"), [({"power": 0.0}, "power"), ({"offset": -1.0}, "offset")])
def test_bad_input_is_one_sentence(own, word):
    with pytest.raises(ValueError, match=word):
        create("softplus-attention-lssa", dim=32, heads=4, **own)
