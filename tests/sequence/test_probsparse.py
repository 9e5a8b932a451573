"""ProbSparse: softmax for the queries that need it."""

from math import ceil, log

import pytest
import torch

from regardant.core.pattern import Padding
from regardant.sequence.probsparse import ProbSparse, ProbSparseRule, drawn_keys


def heads(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, n, 4, dtype=torch.float64, generator=generator) for _ in range(3)]


def test_chosen_queries_get_softmax_and_the_others_the_mean():
    q, k, v = heads(60)
    out, full = ProbSparseRule(1)(q, k, v), (q @ k.mT / 2).softmax(-1) @ v
    mean = v.mean(2, keepdim=True).expand_as(v)
    worked = (out - full).abs().amax(-1) < 1e-12
    assert (worked.sum(-1) == ceil(log(60))).all()
    torch.testing.assert_close(out[~worked], mean[~worked], rtol=0, atol=1e-12)


def test_the_least_even_queries_are_chosen():
    q, k, v = heads(40)
    q[:, :, 11] *= 50
    q[:, :, 29] *= 50
    full = (q @ k.mT / 2).softmax(-1) @ v
    out = ProbSparseRule(1)(q, k, v)
    torch.testing.assert_close(out[:, :, [11, 29]], full[:, :, [11, 29]], rtol=0, atol=1e-12)


def test_with_a_large_factor_it_is_softmax():
    q, k, v = heads(10)
    torch.testing.assert_close(ProbSparseRule(9)(q, k, v), (q @ k.mT / 2).softmax(-1) @ v, rtol=0, atol=1e-12)


def test_draws_spread_over_the_real_keys_and_differ_from_query_to_query():
    real = torch.rand(2, 400, generator=torch.Generator().manual_seed(0)) < 0.6
    keys = torch.stack([*drawn_keys(real, 12)], dim=-1)
    assert real.gather(1, keys.flatten(1)).all()
    counts = torch.bincount(keys[0].flatten(), minlength=400)[real[0]].double()
    assert counts.min() > 0.4 * counts.mean() and counts.max() < 3.0 * counts.mean()
    assert not torch.equal(keys[0, 3].sort().values, keys[0, 4].sort().values)


def test_pitfall_the_draw_is_the_same_in_every_call_and_in_training():
    rule, (q, k, v) = ProbSparseRule(1), heads(50)
    assert torch.equal(rule.train()(q, k, v), rule.eval()(q, k, v))


def test_padding_is_neither_drawn_nor_chosen_nor_averaged():
    rule, (q, k, v) = ProbSparseRule(1), heads(40)
    real = torch.arange(40).expand(2, 40) < torch.tensor([[31], [1]])
    q[:, :, 35] *= 100
    out = rule(q, k, v, pattern=Padding(real))
    for sample, count in enumerate((31, 1)):
        its = (x[sample : sample + 1, :, :count] for x in (q, k, v))
        torch.testing.assert_close(out[sample, :, :count], rule(*its)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("own", "word"), [({"factor": 0}, "factor is 0"), ({"causal": True}, "no causal")])
def test_bad_input(own, word):
    with pytest.raises(ValueError, match=word):
        ProbSparse(32, 4, **own)
