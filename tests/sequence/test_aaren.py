"""Aaren: attention as a prefix scan."""

from math import inf

import pytest
import torch

from regardant.sequence.aaren import Aaren, Running, scan_attention

LENGTHS = [1, 2, 17, 64, 257]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return Aaren(32, 4, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def brute_force(scores, values):
    n = scores.shape[-1]
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    logits = scores[..., None, :].expand(*scores.shape, n).masked_fill(later, -inf)
    return logits.softmax(-1) @ values


def leaves(n, dtype=torch.float64, largest=3.0):
    generator = torch.Generator().manual_seed(n)
    scores = (2 * torch.rand(2, 3, n, generator=generator, dtype=torch.float64) - 1) * largest
    return scores.to(dtype), torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 257, 1100])
def test_the_scan_gives_every_prefix_its_softmax(n):
    scores, values = leaves(n)
    torch.testing.assert_close(
        scan_attention(scores, values)[0], brute_force(scores, values), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("n", [17, 300])
def test_pitfall_scores_of_80_neither_overflow_nor_lose_early_prefixes(n):
    scores, values = leaves(n, torch.float32, largest=80.0)
    scores[..., -1] = 80.0
    scores[..., 0] = -80.0
    scores.requires_grad_()
    out, _ = scan_attention(scores, values)
    exact = brute_force(scores.detach().double(), values.double())
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-5)
    assert torch.autograd.grad(out.square().sum(), scores)[0].isfinite().all()


@pytest.mark.parametrize("n", [9, 70])
def test_pitfall_the_scan_is_differentiable_to_the_end(n):
    scores, values = leaves(n)
    scores.requires_grad_(), values.requires_grad_()
    weight = torch.randn_like(values)
    ours = torch.autograd.grad((scan_attention(scores, values)[0] * weight).sum(), [scores, values])
    theirs = torch.autograd.grad((brute_force(scores, values) * weight).sum(), [scores, values])
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_the_merge_is_associative_so_that_any_cut_gives_the_same():
    scores, values = leaves(90)
    whole, last = scan_attention(scores, values)
    state, parts = None, []
    for cut in (slice(0, 1), slice(1, 40), slice(40, 90)):
        out, state = scan_attention(scores[..., cut], values[..., cut, :], state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.output, last.output, rtol=0, atol=1e-12)
    assert state.length == 90


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
def test_forward_and_its_gradients_equal_the_reference(n, causal):
    mixer, x = layer(causal=causal, kv_heads=2, bias=True), inputs(n).requires_grad_()
    parameters = [x, *mixer.parameters()]
    fast, plain = mixer(x), mixer.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), parameters),
        torch.autograd.grad((plain * weight).sum(), parameters),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("config", [{}, {"kv_heads": 2}, {"position": "learned", "max_length": 257}])
def test_stepping_equals_forward(n, config):
    mixer, x = layer(causal=True, **config), inputs(n)
    with torch.no_grad():
        state, outputs = mixer.start(2), []
        for t in range(n):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), mixer(x), rtol=0, atol=1e-9)
        y, prefilled = mixer.prefill(x)
        torch.testing.assert_close(y, mixer(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(prefilled.output, state.output, rtol=0, atol=1e-9)


def test_without_causality_every_position_gets_the_last_prefix():
    causal, pooled, x = layer(causal=True), layer(), inputs(40)
    last = causal(x)[:, -1:]
    torch.testing.assert_close(pooled(x), last.expand(-1, 40, -1), rtol=0, atol=1e-12)


def test_pitfall_the_score_does_not_depend_on_the_position_being_produced():
    mixer, x = layer(causal=True), inputs(3)
    swapped = x[:, [1, 0, 2]]
    torch.testing.assert_close(mixer(x)[:, 2], mixer(swapped)[:, 2], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="position is Rotary"):
        layer(causal=True, position="rotary")


def test_it_costs_one_vector_more_than_attention_as_the_paper_counts():
    mixer = layer()
    assert sum(p.numel() for p in mixer.parameters()) == 4 * 32 * 32 + 32


def test_the_state_is_the_same_size_at_any_length():
    mixer = layer(causal=True)
    with torch.no_grad():
        sizes = {mixer.prefill(inputs(n))[1].nbytes for n in (1, 64, 300)}
    assert sizes == {2 * 4 * (1 + 1 + 8) * 8}


def test_the_state_is_left_as_it_was_so_that_a_beam_may_fork():
    mixer, x = layer(causal=True), inputs(2)
    with torch.no_grad():
        _, first = mixer.step(x[:, 0], mixer.start(2))
        kept = Running(first.length, *(part.clone() for part in (first.largest, first.total, first.weighted)))
        mixer.step(x[:, 1], first)
    for name in ("largest", "total", "weighted"):
        torch.testing.assert_close(getattr(first, name), getattr(kept, name), rtol=0, atol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_never_leaks_and_nothing_seen_is_zero_not_nan(causal):
    mixer, x, changed = layer(causal=causal), inputs(45), inputs(45)
    padding = torch.rand(2, 45, generator=torch.Generator().manual_seed(0)) > 0.5
    padding[0, :3], padding[1] = False, False
    changed[~padding] = 50.0
    x.requires_grad_()
    a, b = mixer(x, padding=padding), mixer(changed, padding=padding)
    torch.testing.assert_close(a[padding], b[padding], rtol=0, atol=1e-12)
    torch.testing.assert_close(a, mixer.reference(x, padding=padding), rtol=0, atol=1e-9)
    assert a[1].abs().max() == 0
    assert torch.autograd.grad(a.sum(), x)[0].isfinite().all()


def test_the_future_does_not_move_the_past_and_samples_do_not_meet():
    mixer, x, changed = layer(causal=True), inputs(100), inputs(100)
    changed[:, 61:] *= -3
    torch.testing.assert_close(mixer(x)[:, :61], mixer(changed)[:, :61], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixer(x)[1:], mixer(x[1:]), rtol=0, atol=1e-12)


def test_bfloat16_stays_near():
    mixer = layer(causal=True).bfloat16()
    exact = layer(causal=True).double()
    exact.load_state_dict({name: value.double() for name, value in mixer.state_dict().items()})
    x = inputs(257).bfloat16()
    wanted = exact(x.double())
    assert (mixer(x).double() - wanted).norm() / wanted.norm() < 0.03
