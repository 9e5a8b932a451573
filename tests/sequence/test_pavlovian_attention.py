"""Pavlovian attention: association by a rule of plasticity."""

import pytest
import torch

from regardant.sequence.pavlovian_attention import PavlovianAttention

RULES = [{}, {"rule": "hebb"}, {"rule": "decay", "forget": 0.1}, {"rate": 0.4, "kv_heads": 1}]


def layer(**config):
    torch.manual_seed(0)
    return PavlovianAttention(16, 2, **config).double()


def inputs(n, seed=1):
    return torch.randn(2, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", RULES)
@pytest.mark.parametrize("n", [1, 17, 40])
def test_forward_is_the_equation_and_so_are_its_gradients(config, n):
    attention, x = layer(**config), inputs(n).requires_grad_()
    parameters = [x, *attention.parameters()]
    fast, plain = attention(x), attention.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    for one, other in zip(
        torch.autograd.grad(fast.sin().sum(), parameters), torch.autograd.grad(plain.sin().sum(), parameters)
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", RULES)
def test_stepping_and_a_prompt_equal_forward(config):
    attention, x = layer(**config), inputs(19)
    with torch.no_grad():
        whole = attention(x)
        y, state = attention.prefill(x[:, :7])
        torch.testing.assert_close(y, whole[:, :7], rtol=0, atol=1e-10)
        for t in range(7, 19):
            y, state = attention.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-10)


def test_pitfall_keys_have_length_one_whatever_the_input():
    attention, x = layer(), inputs(9)
    q, k, v = attention.project(x)
    loud = attention.rule(q, 50 * k, v, pattern=attention.visible(9, across=False, padding=None))
    quiet = attention.rule(q, k, v, pattern=attention.visible(9, across=False, padding=None))
    torch.testing.assert_close(loud, quiet, rtol=1e-4, atol=1e-4)


def test_pitfall_nothing_is_normalised_by_a_sum_of_weights():
    """Told the same value twice by the same key, Hebb's rule says it twice over; the delta rule once."""
    x = inputs(1).expand(2, 2, 16)
    for rule, times in (("hebb", 2.0), ("delta", 1.0)):
        _, k, v = layer(rule=rule).project(x)
        out = layer(rule=rule).attend(k, k, v, x=x, pattern=layer().visible(2, across=False, padding=None))
        torch.testing.assert_close(out[:, :, 1], times * v[:, :, 1], rtol=1e-4, atol=1e-4)


def test_padding_is_never_associated():
    attention, x = layer(), inputs(10)
    real = torch.rand(2, 10, generator=torch.Generator().manual_seed(0)) < 0.6
    changed = torch.where(real[..., None], x, 100.0)
    torch.testing.assert_close(
        attention(x, padding=real)[real], attention(changed, padding=real)[real], rtol=0, atol=1e-10
    )


def test_the_mixing_matrix_of_hebb_is_the_overlap_of_queries_and_keys():
    attention, x = layer(rule="hebb"), inputs(8)
    q, k, _ = attention.project(x)
    cosine = torch.nn.functional.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)
    torch.testing.assert_close(attention.mixing_matrix(x), cosine.tril(), rtol=1e-4, atol=1e-4)


def test_bad_configuration_says_what_would_be_right():
    with pytest.raises(ValueError, match="not linear in its values"):
        layer(rule="oja")
    with pytest.raises(ValueError, match="the delta rule diverges"):
        layer(rate=2.5)
    with pytest.raises(ValueError, match="causal=False"):
        layer(causal=False)
