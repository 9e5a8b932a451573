"""Rules of plasticity: chunk by chunk against pair by pair, and against their known selves."""

import pytest
import torch

from regardant.core.plasticity import associate, associate_plainly, check_plasticity, written

RULES = [("hebb", 0.7, 0.0), ("decay", 0.7, 0.2), ("oja", 0.7, 0.0), ("delta", 0.7, 0.0)]


def drawn(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, n, w, generator=generator, dtype=torch.float64) for w in (5, 5, 4))
    return [x.requires_grad_() for x in (q, k / k.norm(dim=-1, keepdim=True), v)]


@pytest.mark.parametrize("rule, rate, forget", RULES)
@pytest.mark.parametrize("n", [1, 7, 16, 37])
def test_chunks_are_the_rule_and_so_are_their_gradients(rule, rate, forget, n):
    inputs = drawn(n)
    begun = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    fast, last = associate(*inputs, rule, rate=rate, forget=forget, state=begun)
    plain, end = associate_plainly(*inputs, rule, rate=rate, forget=forget, state=begun)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(last, end, rtol=0, atol=1e-10)
    ours = torch.autograd.grad(fast.sin().sum() + last.cos().sum(), [*inputs, begun])
    theirs = torch.autograd.grad(plain.sin().sum() + end.cos().sum(), [*inputs, begun])
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_pitfall_hebb_is_linear_attention_without_a_normaliser():
    q, k, v = drawn(12)
    out, _ = associate(q, k, v, "hebb", rate=0.5)
    torch.testing.assert_close(out, 0.5 * (q @ k.mT).tril() @ v, rtol=0, atol=1e-12)


def test_oja_is_its_usual_form_for_small_steps_and_holds_its_matrix_in_bounds():
    generator = torch.Generator().manual_seed(0)
    state, k, v = (torch.rand(size, generator=generator, dtype=torch.float64) for size in ((5, 4), 5, 4))
    usual = state + 1e-5 * (k[:, None] * v - state * v.square())
    torch.testing.assert_close(written(state, k, v, "oja", rate=1e-5), usual, rtol=0, atol=1e-9)
    key, value = torch.eye(5)[0].double(), torch.full((4,), 2.0).double()
    state = torch.zeros(5, 4).double()
    for _ in range(500):
        state = written(state, key, value, "oja", rate=1.0)
    assert state.abs().max() < 2.1


def test_pitfall_the_delta_rule_is_stable_below_a_rate_of_two_and_only_there():
    q, k, v = drawn(200)
    _, state = associate(q, k, v, "delta", rate=1.9)
    assert state.abs().max() < 100
    key = k[:, :, :1].expand(-1, -1, 200, -1)
    _, alike = associate(key, key, v, "delta", rate=1.0)
    assert alike.isfinite().all()
    with pytest.raises(ValueError, match="diverges from 2 on"):
        check_plasticity("delta", 2.0, 0.0)


@pytest.mark.parametrize(
    "rule, rate, forget, said",
    [
        ("hebbian", 1.0, 0.0, "no plasticity rule is called 'hebbian'; the nearest are hebb"),
        ("hebb", 0.0, 0.0, "rate is 0.0"),
        ("decay", 1.0, 1.0, "forget is 1.0"),
        ("delta", 1.0, 0.1, "that is the rule 'decay'"),
    ],
)
def test_bad_configuration_says_what_would_be_right(rule, rate, forget, said):
    with pytest.raises(ValueError, match=said):
        check_plasticity(rule, rate, forget)
