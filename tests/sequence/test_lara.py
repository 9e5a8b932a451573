"""LARA: random features under proposals that follow the sequence."""

import pytest
import torch

from regardant.core.pattern import Padding
from regardant.sequence.lara import Lara, LaraRule


def heads(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, n, 4, dtype=torch.float64, generator=generator) for _ in range(3)]


def test_the_weighted_proposals_written_out():
    q, k, v = heads(6)
    out = LaraRule(3).eval()(q, k, v)
    q, k = q / 2**0.5, k / 2**0.5
    expected = torch.zeros_like(out)
    middle = q.unflatten(2, (3, 2)).mean(3) + k.unflatten(2, (3, 2)).mean(3)
    for n in range(6):
        alpha, read = [], []
        for c in range(3):
            mu = middle[:, :, c]
            keys = ((k * mu[:, :, None]).sum(-1) - k.square().sum(-1) / 2).exp()
            query = ((q[:, :, n] * mu).sum(-1) - q[:, :, n].square().sum(-1) / 2).exp()
            density = (mu.square().sum(-1) / 2).exp()
            alpha.append((mu * q[:, :, n]).sum(-1).exp() * query * keys.sum(-1) / density)
            read.append((keys[..., None] * v).sum(2) / keys.sum(-1)[..., None])
        total = sum(alpha)
        expected[:, :, n] = sum((a / total)[..., None] * r for a, r in zip(alpha, read))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_draws_are_random_in_training_and_their_mean_in_evaluation():
    rule, (q, k, v) = LaraRule(4), heads(12)
    assert torch.equal(rule.eval()(q, k, v), rule(q, k, v))
    rule.train()
    torch.manual_seed(0)
    one, other = rule(q, k, v), rule(q, k, v)
    assert (one - other).abs().max() > 1e-3
    torch.manual_seed(0)
    assert torch.equal(one, rule(q, k, v))


@pytest.mark.parametrize("n", [1, 3, 17])
def test_weights_are_positive_and_sum_to_one_at_every_length(n):
    q, k, _ = heads(n)
    weights = LaraRule(8).eval()(q, k, torch.eye(n, dtype=torch.float64).expand(2, 2, -1, -1))
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, n, dtype=torch.float64))


def test_padding_is_in_no_segment():
    rule, (q, k, v) = LaraRule(8).eval(), heads(20)
    real = torch.arange(20).expand(2, 20) < torch.tensor([[13], [5]])
    out = rule(q, k, v, pattern=Padding(real))
    for sample, count in enumerate((13, 5)):
        its = (x[sample : sample + 1, :, :count] for x in (q, k, v))
        torch.testing.assert_close(out[sample, :, :count], rule(*its)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("own", "word"), [({"landmarks": 0}, "landmarks is 0"), ({"causal": True}, "no causal")]
)
def test_bad_input(own, word):
    with pytest.raises(ValueError, match=word):
        Lara(32, 4, **own)
    with pytest.raises(ValueError, match="scale is 0"):
        Lara(32, 4, scale=0)(torch.randn(1, 3, 32))
