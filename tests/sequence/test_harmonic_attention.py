"""Rotary positions with a harmonic bias."""

import math

import pytest
import torch

from regardant.sequence.harmonic_attention import HarmonicAttention
from regardant.sequence.softmax import Softmax


def inputs(n, dim=16, seed=1, batch=2):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("form", ["harmonic", "linear"])
def test_one_logit_by_hand(form):
    torch.manual_seed(0)
    made, x = HarmonicAttention(16, 4, causal=True, form=form, learn=True).double(), inputs(6)
    made.query_weight.fill_(0.7)
    made.position.weight.fill_(1.3)
    q, k, v = made.project(x)
    h, i, far = 2, 5, 4
    slope = 2 ** (-8 * (h + 1) / 4) if form == "harmonic" else 1 / (h + 1)
    assert float(made.position.slopes[h]) == pytest.approx(slope, abs=1e-7)
    slope = float(made.position.slopes[h])
    cost = sum(1 / n for n in range(1, far + 1)) if form == "harmonic" else far
    expected = float(q[0, h, i] @ k[0, h, i - far]) / 2 - 1.3 * slope * cost
    eye = torch.eye(6, dtype=torch.float64).expand(2, 4, 6, 6)
    logs = made.rule(q, k, eye, pattern=None)[0, h, i].log()
    own = float(q[0, h, i] @ k[0, h, i]) / 2
    assert float(logs[i - far] - logs[i]) == pytest.approx(expected - own, abs=1e-12)
    plain = Softmax(16, 4, causal=True, position="rotary").double()
    plain.load_state_dict(made.state_dict(), strict=False)
    torch.testing.assert_close(q, 0.7 * plain.project(x)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(v, plain.project(x)[2], rtol=0, atol=0)


@torch.no_grad()
def test_the_harmonic_form_grows_as_the_logarithm():
    bias = HarmonicAttention(16, 4).double().position
    far = -bias.block(torch.tensor([10**6]), torch.tensor([0]))[0, 0, 0] / bias.slopes[0]
    assert float(far) == pytest.approx(math.log(10**6) + 0.5772156649015329, abs=1e-5)
    assert bias.block(torch.tensor([3]), torch.tensor([3])).abs().max() < 1e-12


@torch.no_grad()
def test_without_its_bias_it_is_rotary_attention():
    torch.manual_seed(0)
    plain, x = Softmax(16, 4, causal=True, position="rotary").double(), inputs(30)
    ours = HarmonicAttention.from_dense(plain, learn=True)
    ours.position.weight.zero_()
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=1e-12)


def test_the_weights_learn():
    made, x = HarmonicAttention(16, 4, causal=True, learn=True).double(), inputs(9)
    made(x).square().sum().backward()
    assert made.query_weight.grad.abs() > 0 and made.position.weight.grad.abs() > 0


@pytest.mark.parametrize(
    ("own", "words"), [({"position": "alibi"}, "position is alibi"), ({"form": "odd"}, "form")]
)
def test_bad_input_is_one_sentence(own, words):
    with pytest.raises(ValueError, match=words):
        HarmonicAttention(16, 4, **own)
