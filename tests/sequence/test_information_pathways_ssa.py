"""Stochastically subsampled self-attention."""

from functools import partial
from math import ceil

import pytest
import torch

from regardant.core import plan
from regardant.core.pattern import Causal, Padding, both
from regardant.core.record import Record
from regardant.sequence.information_pathways_ssa import Pathways, SubsampledAttention, ensemble, set_ratio
from regardant.sequence.softmax import Softmax
from regardant.train.model import TokenModel

LENGTHS = [1, 2, 17, 64, 257]


def layer(causal=False, seed=0, **config):
    torch.manual_seed(seed)
    return SubsampledAttention(32, 4, causal=causal, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=generator(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(layers=2, **config):
    torch.manual_seed(0)
    mixers = [partial(SubsampledAttention, 16, 2, causal=True, **config)] * layers
    return TokenModel(11, mixers, dim=16, length=40).double().eval()


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("locality", [None, 1.0])
def test_a_drawn_pass_is_the_equation_among_the_windows(n, causal, locality):
    attention, x = layer(causal, ratio=4, locality=locality).train(), inputs(n).requires_grad_()
    record = Record(generator=generator())
    y = attention(x, record=record)
    (windows,) = record.seen["windows"]
    sees = windows[:, None] == windows[None, :]
    if causal:
        sees = sees & (torch.arange(n)[:, None] >= torch.arange(n))
    q, k, v = attention.project(x)
    logits = (q @ k.mT * 8**-0.5).masked_fill(~sees, -torch.inf)
    plain = attention.merge(logits.softmax(-1) @ v, x=x)
    torch.testing.assert_close(y, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), x, retain_graph=True) for out in (y, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [17, 64, 131])
@pytest.mark.parametrize("position", ["none", "rotary"])
def test_windows_cut_into_tiles_are_the_masked_equation(n, position):
    drawn = layer(ratio=4, position=position).draw(n, generator())
    q, k, v = torch.randn(3, 2, 4, n, 8, dtype=torch.float64, generator=generator(1))
    real = torch.rand(2, n, generator=generator(2)) < 0.7
    for pattern in (drawn, both(Causal(), drawn), both(Causal(), drawn, Padding(real))):
        torch.testing.assert_close(
            plan.attend(q, k, v, pattern, plan="partition"), plan.attend_dense(q, k, v, pattern),
            rtol=0, atol=1e-9,
        )  # fmt: skip


def test_evaluation_is_dense_and_so_is_a_ratio_of_one():
    softmax = Softmax(32, 4, causal=True).double()
    attention, x = SubsampledAttention.from_dense(softmax, ratio=4), inputs(33)
    torch.testing.assert_close(attention.eval()(x), softmax(x), rtol=0, atol=1e-12)
    assert not torch.allclose(attention.train()(x), softmax(x))
    set_ratio(attention, 1)
    torch.testing.assert_close(attention(x), softmax(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("locality", [None, 0.0, 1.0, 20.0])
def test_every_position_is_in_one_window_and_windows_are_of_one_size(n, locality):
    drawn = layer(ratio=4, locality=locality).draw(n, generator())
    sizes = drawn.values.bincount()
    assert drawn.window == ceil(n / 4)
    assert sizes[:-1].eq(drawn.window).all() and 1 <= sizes[-1] <= drawn.window and sizes.sum() == n


def test_without_noise_the_windows_are_runs():
    drawn = layer(ratio=4, locality=0.0).draw(16, generator())
    assert drawn.values.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_unbiased_every_pair_is_equally_likely_to_meet_and_biased_near_ones_meet_more():
    seeds, n = range(400), 64
    met = {}
    for locality in (None, 0.5):
        attention = layer(ratio=4, locality=locality)
        ids = torch.stack([attention.draw(n, generator(seed)).values for seed in seeds])
        met[locality] = (ids[:, :, None] == ids[:, None, :]).double().mean(0)
    far = met[None][0, 32:].mean()
    near = met[None].diagonal(1).mean()
    assert abs(near - 15 / 63) < 0.01 and abs(far - 15 / 63) < 0.03
    assert met[0.5].diagonal(1).mean() > 2 * 15 / 63 and met[0.5].diagonal(40).mean() < 0.01


def test_the_work_is_one_in_ratio_of_the_pairs():
    for ratio in (4, 8):
        drawn = layer(ratio=ratio).draw(2048, generator())
        way = plan.explain(both(Causal(), drawn), 2048, heads=4)
        assert way.name == "partition" and way.pairs * ratio == way.total


def test_pitfall_one_draw_serves_all_heads_and_samples():
    attention, x = layer(ratio=4, locality=None).train(), inputs(24, batch=1)
    y = attention(x.expand(3, -1, -1), record=Record(generator=generator()))
    torch.testing.assert_close(y[0], y[2], rtol=0, atol=1e-12)
    for weight in (attention.to_q.weight, attention.to_k.weight, attention.to_v.weight):
        weight.data = weight.data[:8].repeat(4, 1)  # all heads alike
    q, k, v = attention.project(x)
    record = Record(generator=generator())
    heads = attention.attend(q, k, v, x=x, pattern=None, record=record)
    torch.testing.assert_close(heads[:, 0], heads[:, 3], rtol=0, atol=1e-12)


def test_pitfall_each_layer_and_each_step_draws_anew():
    net, tokens = model(layers=3, ratio=4).train(), torch.zeros(1, 40, dtype=torch.long)
    record = Record()
    for _ in range(2):
        net(tokens, record=record)
    draws = {tuple(windows.tolist()) for windows in record.seen["windows"]}
    assert len(record.seen["windows"]) == len(draws) == 6


def test_pitfall_a_causal_row_always_sees_itself():
    attention, x = layer(True, ratio=8, locality=None).train(), inputs(40)
    record = Record(generator=generator(3))
    y = attention(x, record=record)
    windows = record.seen["windows"][0]
    first = [(windows == each).nonzero()[0].item() for each in range(8)]  # these have only later ones
    _, _, v = attention.project(x)
    alone = attention.merge(v, x=x)
    torch.testing.assert_close(y[:, first], alone[:, first], rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", ["alibi", "relative"])
def test_pitfall_a_relative_bias_goes_by_the_true_positions(position):
    attention, x = layer(True, ratio=4, locality=None, position=position).train(), inputs(300, batch=1)
    with torch.no_grad():
        for parameter in attention.position.parameters():
            parameter.normal_(generator=generator(5))
    record = Record(generator=generator())
    y = attention(x, record=record)
    windows, at = record.seen["windows"][0], torch.arange(300)
    q, k, v = attention.project(x)
    logits = q @ k.mT * 8**-0.5 + attention.position.block(at, at)
    sees = (windows[:, None] == windows) & (at[:, None] >= at)
    plain = attention.merge(logits.masked_fill(~sees, -torch.inf).softmax(-1) @ v, x=x)
    torch.testing.assert_close(y, plain, rtol=0, atol=1e-9)


def test_pitfall_evaluation_draws_nothing_and_a_generator_makes_a_sample_come_again():
    attention, x = layer(ratio=4).eval(), inputs(40)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    attention(x)
    one, same = (attention(x, record=Record(generator=generator(7))) for _ in range(2))
    assert torch.equal(one, same) and torch.equal(before, torch.get_rng_state())
    assert not torch.allclose(one, attention(x, record=Record(generator=generator(8))))


def test_under_one_draw_the_past_does_not_see_the_future_in_training():
    attention, x = layer(True, ratio=4).train(), inputs(64)
    changed = torch.cat([x[:, :40], 5 * inputs(24, seed=9)], dim=1)
    one, other = (attention(each, record=Record(generator=generator())) for each in (x, changed))
    torch.testing.assert_close(one[:, :40], other[:, :40], rtol=0, atol=1e-12)


def test_an_ensemble_averages_probabilities():
    net, tokens = model(ratio=4), torch.randint(11, (2, 40), generator=generator())
    found = ensemble(net, tokens, samples=3, generator=generator(2))
    draws = generator(2)
    each = [net(tokens, record=Record(generator=draws)).softmax(-1) for _ in range(3)]
    torch.testing.assert_close(found.exp(), sum(each) / 3, rtol=0, atol=1e-12)
    assert not torch.allclose(each[0], each[1])
    one = ensemble(net, tokens, samples=1, generator=generator(2))
    torch.testing.assert_close(one, each[0].log(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(2, 40, dtype=torch.float64))


def test_an_ensemble_of_a_model_that_never_draws_is_refused():
    plain = TokenModel(11, [partial(Softmax, 16, 2, causal=True)], dim=16)
    with pytest.raises(ValueError, match="without a SubsampledAttention"):
        ensemble(plain, torch.zeros(1, 4, dtype=torch.long), samples=2, generator=generator())
    with pytest.raises(ValueError, match="samples is 0"):
        ensemble(model(), torch.zeros(1, 4, dtype=torch.long), samples=0, generator=generator())


@pytest.mark.parametrize("config", [{"ratio": 0}, {"locality": -1.0}])
def test_bad_configuration_says_what_would_be_right(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        SubsampledAttention(32, 4, **config)


def test_windows_of_a_pattern_tell_their_groups():
    groups = Pathways(torch.tensor([1, 0, 2, 0, 1]), 2).partition(5, torch.device("cpu"))
    assert groups.order.tolist() == [[1, 3], [0, 4], [2, 0]]
    assert groups.valid.tolist() == [[True, True], [True, True], [True, False]]
