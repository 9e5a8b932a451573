"""Small networks of cross-attention alone."""

from functools import partial

import pytest
import torch

from regardant.sequence.softmax import Softmax
from regardant.train.cross_model import SetModel, Translator

CROSS = partial(Softmax, dim=16, heads=2, context_dim=16)


def test_a_set_has_no_order():
    torch.manual_seed(0)
    model = SetModel(2, 3, [CROSS] * 2, dim=16, asked=5).double()
    x = torch.randn(4, 7, 2, dtype=torch.float64)
    y = model(x)
    assert y.shape == (4, 5, 3)
    torch.testing.assert_close(y, model(x[:, torch.randperm(7)]), rtol=0, atol=1e-12)
    assert (y[0] - y[1]).abs().max() > 1e-3


def test_what_is_said_later_changes_nothing_before():
    torch.manual_seed(0)
    mixers = [partial(CROSS, causal=True)] * 2
    model = Translator(9, mixers, dim=16, memory=6, length=6).double()
    tokens = torch.randint(9, (3, 12))
    other = tokens.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 9
    whole = model(tokens)
    torch.testing.assert_close(model(other)[:, :3], whole[:, :3], rtol=0, atol=1e-12)
    torch.testing.assert_close(model(tokens[:, :9]), whole[:, :3], rtol=0, atol=1e-12)
    tokens[:, 0] = (tokens[:, 0] + 1) % 9
    assert ((model(tokens) - whole).abs().amax((0, 2)) > 1e-6).all()


def test_bad_input():
    with pytest.raises(ValueError, match="the memory alone takes 6"):
        Translator(9, [CROSS], dim=16, memory=6, length=6)(torch.zeros(1, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="mixers is empty"):
        SetModel(2, 3, [], dim=16, asked=5)
