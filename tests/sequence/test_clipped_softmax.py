"""Attention with a clipped softmax."""

import pytest
import torch

from regardant.core.pattern import Causal, Padding, Window
from regardant.sequence.clipped_softmax import ClippedRule, ClippedSoftmax
from regardant.sequence.softmax import Softmax

LENGTHS = [1, 2, 17, 64, 257]


def layer(seed=0, training_length=128, **config):
    torch.manual_seed(seed)
    return ClippedSoftmax(32, 4, training_length=training_length, **config).double()


def inputs(n, batch=2, seed=1, scale=3.0, dim=32):
    return scale * torch.randn(
        batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    "config",
    [
        {"causal": True},
        {"causal": True, "kv_heads": 2, "position": "alibi", "zeta": 1.05},
        {"pattern": Window(9), "alpha": 4.0},
        {"position": "relative"},
    ],
)
def test_forward_and_its_gradients_equal_the_reference(n, config):
    mixer, x = layer(**config), inputs(n).requires_grad_()
    parameters = [x, mixer.to_q.weight, mixer.to_k.weight, mixer.to_v.weight]
    fast, plain = mixer(x), mixer.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), parameters),
        torch.autograd.grad((plain * weight).sum(), parameters),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_stepping_equals_forward(n, kv_heads):
    mixer, x = layer(causal=True, kv_heads=kv_heads), inputs(n)
    with torch.no_grad():
        state, outputs = mixer.start(2), []
        for t in range(n):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), mixer(x), rtol=0, atol=1e-9)


def test_gamma_zero_and_zeta_one_are_the_softmax():
    torch.manual_seed(0)
    dense, x = Softmax(32, 4, causal=True).double(), inputs(40)
    clipped = ClippedSoftmax.from_dense(dense, alpha=0.0)
    torch.testing.assert_close(clipped(x), dense(x), rtol=0, atol=1e-12)


def test_weights_are_true_zeros_and_ones_at_finite_logits():
    rule = ClippedRule(gamma=-0.1, zeta=1.1)
    logits = torch.tensor([[8.0, 0.0, 0.0], [1.0, 0.0, -2.0]])
    weights = rule.normalise(logits, torch.ones(2, 3, dtype=torch.bool))
    assert weights[0].tolist() == [1.0, 0.0, 0.0]
    assert weights[1, 2] == 0.0 and 0 < weights[1, 1] < weights[1, 0] < 1
    torch.testing.assert_close(weights[1, 0], 1.2 * logits[1].softmax(-1)[0] - 0.1)


def test_what_is_clipped_gets_no_gradient():
    rule = ClippedRule(gamma=-0.2)
    logits = torch.tensor([6.0, 0.0, 0.0], requires_grad=True)
    weights = rule.normalise(logits, torch.ones(3, dtype=torch.bool))
    assert weights[1] == 0.0
    assert torch.autograd.grad(weights[1:].sum(), logits)[0].abs().max() == 0


def test_pitfall_gamma_goes_with_the_length_trained_at_not_with_the_length_at_hand():
    mixer = layer(alpha=4.0, training_length=200)
    assert mixer.rule.gamma == -0.02
    mixer(inputs(10)), mixer(inputs(100))
    assert mixer.rule.gamma == -0.02


def test_pitfall_rows_of_more_even_keys_than_t_over_alpha_are_all_zero_and_stop_learning():
    mixer = layer(alpha=2.0, training_length=40)
    for n, dead in ((19, False), (22, True)):
        x = inputs(1).expand(-1, n, -1).clone().requires_grad_()
        y = mixer(x)
        assert (y.abs().max() == 0) == dead
        assert (torch.autograd.grad(y.sum(), x)[0].abs().max() == 0) == dead


def test_masked_keys_get_nothing_and_a_row_that_sees_none_is_zero():
    mixer, x, changed = layer(), inputs(30), inputs(30)
    padding = torch.rand(2, 30, generator=torch.Generator().manual_seed(0)) > 0.4
    padding[1] = False
    changed[~padding] = 40.0
    x.requires_grad_()
    y = mixer(x, padding=padding)
    torch.testing.assert_close(y[padding], mixer(changed, padding=padding)[padding], rtol=0, atol=1e-12)
    assert y[1].abs().max() == 0
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()
    q, k, v = mixer.project(x)
    pattern = Causal() & Padding(padding)
    torch.testing.assert_close(
        mixer.rule(q, k, v, pattern=pattern),
        mixer.rule.reference(q, k, v, pattern=pattern),
        rtol=0,
        atol=1e-12,
    )


def test_the_future_does_not_move_the_past():
    mixer, x, changed = layer(causal=True), inputs(64), inputs(64)
    changed[:, 40:] *= -2
    torch.testing.assert_close(mixer(x)[:, :40], mixer(changed)[:, :40], rtol=0, atol=1e-12)


def test_cross_attention_equals_the_reference():
    mixer = layer(context_dim=24, causal=True)
    x, context = inputs(7), inputs(12, dim=24)
    torch.testing.assert_close(mixer(x, context), mixer.reference(x, context), rtol=0, atol=1e-9)
    y, _ = mixer.step(x[:, 0], mixer.start(2, context=context))
    torch.testing.assert_close(y, mixer(x, context)[:, 0], rtol=0, atol=1e-9)


def test_bfloat16_stays_near():
    mixer = layer(causal=True).bfloat16()
    exact = layer(causal=True).double()
    exact.load_state_dict({name: value.double() for name, value in mixer.state_dict().items()})
    x = inputs(100, scale=1.0).bfloat16()
    wanted = exact(x.double())
    assert (mixer(x).double() - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.parametrize("config", [{"alpha": -1.0}, {"zeta": 0.9}, {"training_length": 0}])
def test_bad_configuration_says_what_would_be_right(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        layer(**config)
