"""Flowformer: attention by conservation of flow."""

import pytest
import torch

from regardant.core.pattern import Causal, Padding
from regardant.sequence.flowformer import EPSILON, Flowformer, FlowRule

LENGTHS = [1, 2, 17, 64, 257]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return Flowformer(32, 4, **config).double()


def inputs(n, batch=2, seed=1, dim=32):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def heads(*lengths, seed=0, heads=(2, 2, 2)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, h, n, 4, dtype=torch.float64, generator=generator) for n, h in zip(lengths, heads)]


def mixing(rule, n, keys, *, causal=False):
    """What each value contributes to each output, read off with unit vectors as values."""
    q, k, _ = heads(n, keys, keys)
    unit = torch.eye(keys, dtype=torch.float64).expand(2, 2, -1, -1)
    return q, k, rule(q, k, unit, pattern=Causal() if causal else None)


def test_a_sink_takes_in_one_unit_and_a_source_gives_out_one():
    q, k, _ = heads(6, 9, 9)
    q, k = torch.sigmoid(q), torch.sigmoid(k)
    capacity = (q + EPSILON) @ (k + EPSILON).mT
    incoming, outgoing = capacity.sum(-1, keepdim=True), capacity.sum(-2, keepdim=True)
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close((capacity / incoming).sum(-1), one.expand(2, 2, 6))
    torch.testing.assert_close((capacity / outgoing).sum(-2), one.expand(2, 2, 9))


@pytest.mark.parametrize("causal", [False, True])
def test_with_equal_sources_each_output_is_an_allotment_of_a_mean(causal):
    """With all keys alike nobody wins the competition, each sink's weights sum to its allotment."""
    n = 7
    q, _, v = heads(n, n, n)
    k = torch.zeros_like(q)
    out = FlowRule()(q, k, v.new_ones(v.shape), pattern=Causal() if causal else None)
    allotment = out[..., 0]
    assert ((allotment > 0.5) & (allotment < 0.99)).all()
    torch.testing.assert_close(out, allotment[..., None].expand_as(out), rtol=0, atol=1e-6)


def test_pitfall_competition_is_over_sources_and_keeps_the_factor_n():
    """The competition weights of the sources sum to n: magnitudes do not shrink with the length."""
    for keys in (5, 400):
        q, k, weights = mixing(FlowRule(), 11, keys)
        q, k = torch.sigmoid(q), torch.sigmoid(k)
        capacity = q @ k.mT
        incoming = capacity.sum(-1, keepdim=True)
        shares = weights / (capacity / incoming)
        competition = shares / shares.mean(-1, keepdim=True)
        torch.testing.assert_close(
            competition, competition[:, :, :1].expand_as(competition), rtol=1e-4, atol=0
        )
        assert 0.5 < weights.sum(-1).mean() < 1.0


def test_pitfall_the_factors_of_t_hold_causal_magnitudes_over_the_length():
    rule = FlowRule()
    q, k, v = heads(3000, 3000, 3000)
    total = rule(q, k, torch.ones_like(v), pattern=Causal())[..., 0]
    early, late = total[:, :, 50:150].mean(), total[:, :, -100:].mean()
    assert 0.9 < early / late < 1.1


def test_pitfall_the_clamp_belongs_to_the_behaviour():
    """Few sinks, many sources against many sinks, few sources: there Ô passes 1 and is held."""
    q, k, v = heads(60, 3, 3)
    capacity = torch.sigmoid(q) @ torch.sigmoid(k).mT
    taken, sent = capacity / capacity.sum(-1, keepdim=True), capacity / capacity.sum(-2, keepdim=True)
    assert (taken.sum(-2) > 1).all()
    even = torch.sigmoid(sent.sum(-1, keepdim=True) * 60 / 3) * (taken @ v)
    torch.testing.assert_close(FlowRule()(q, k, v), even, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    "config", [{}, {"causal": True}, {"causal": True, "kv_heads": 2, "position": "rotary"}]
)
def test_forward_and_its_gradients_equal_the_reference(n, config):
    mixer, x = layer(**config), inputs(n).requires_grad_()
    parameters = [x, *mixer.parameters()]
    fast, plain = mixer(x), mixer.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), parameters),
        torch.autograd.grad((plain * weight).sum(), parameters),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("queries, keys", [(1, 1), (5, 17), (64, 3)])
def test_cross_attention_equals_the_reference(queries, keys):
    mixer = layer(context_dim=24, kv_heads=2)
    x, context = inputs(queries), inputs(keys, dim=24)
    padding = torch.rand(2, keys, generator=torch.Generator().manual_seed(0)) > 0.5
    for real in (None, padding):
        torch.testing.assert_close(
            mixer(x, context, real), mixer.reference(x, context, real), rtol=0, atol=1e-9
        )
    with pytest.raises(ValueError, match="no causal cross-attention"):
        layer(context_dim=24, causal=True)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_stepping_equals_forward(n, kv_heads):
    mixer, x = layer(causal=True, kv_heads=kv_heads), inputs(n + 3)
    with torch.no_grad():
        state, outputs = mixer.start(2), []
        for t in range(n):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y)
        whole, prefilled = mixer.prefill(x[:, :n])
        torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=0, atol=1e-9)
        torch.testing.assert_close(prefilled.inner.matrix, state.inner.matrix, rtol=0, atol=1e-9)
        for t in range(n, n + 3):
            y, prefilled = mixer.step(x[:, t], prefilled)
        torch.testing.assert_close(y, mixer(x)[:, -1], rtol=0, atol=1e-9)
        assert prefilled.nbytes == mixer.start(2).nbytes


@pytest.mark.parametrize("causal", [False, True])
def test_pitfall_padding_is_masked_in_every_sum_sinks_included(causal):
    mixer, x, changed = layer(causal=causal), inputs(40), inputs(40)
    padding = torch.rand(2, 40, generator=torch.Generator().manual_seed(3)) > 0.4
    padding[0, :4], padding[1] = False, False
    changed[~padding] = 20.0
    x.requires_grad_()
    a, b = mixer(x, padding=padding), mixer(changed, padding=padding)
    torch.testing.assert_close(a[padding], b[padding], rtol=0, atol=1e-12)
    torch.testing.assert_close(a, mixer.reference(x, padding=padding), rtol=0, atol=1e-9)
    alone = mixer(x[:1, padding[0]])
    torch.testing.assert_close(a[:1, padding[0]], alone, rtol=0, atol=1e-9)
    assert torch.autograd.grad(a.sum(), x)[0].isfinite().all()


def test_a_rule_on_its_own_takes_padding_as_that_of_the_sources():
    q, k, v = heads(6, 9, 9)
    padding = torch.ones(2, 9, dtype=torch.bool)
    padding[:, 5:] = False
    torch.testing.assert_close(
        FlowRule()(q, k, v, pattern=Padding(padding)),
        FlowRule()(q, k[:, :, :5], v[:, :, :5]),
        rtol=0,
        atol=1e-12,
    )


def test_the_future_does_not_move_the_past_and_samples_do_not_meet():
    mixer, x, changed = layer(causal=True), inputs(100), inputs(100)
    changed[:, 61:] *= -3
    torch.testing.assert_close(mixer(x)[:, :61], mixer(changed)[:, :61], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixer(x)[1:], mixer(x[1:]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_pitfall_sums_in_half_precision_stay_near_at_length_2000(causal):
    mixer = layer(causal=causal).bfloat16()
    exact = layer(causal=causal).double()
    exact.load_state_dict({name: value.double() for name, value in mixer.state_dict().items()})
    x = inputs(2000, batch=1).bfloat16()
    wanted = exact(x.double())
    assert (mixer(x).double() - wanted).norm() / wanted.norm() < 0.03
