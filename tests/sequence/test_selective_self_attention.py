"""Selective self-attention: its temperatures, its gates, and the dossier's pitfalls."""

import math

import pytest
import torch

from regardant import create
from regardant.core.pattern import Causal, Window
from regardant.sequence.selective_self_attention import SelectiveSelfAttention
from regardant.sequence.softmax import Softmax


def layer(seed=0, spread=0.5, dim=32, heads=4, **own):
    torch.manual_seed(seed)
    made = SelectiveSelfAttention(dim, heads, **({"causal": True} | own)).double()
    for weight in (made.query_weight, made.value_weight):
        if weight is not None:
            torch.nn.init.normal_(weight, std=spread)
    if made.rule.beta is not None:
        torch.nn.init.constant_(made.rule.beta, -0.4)
    return made


def inputs(n, dim=32, seed=1, batch=2):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(made, x):
    """Token by token, head by head, from the equations."""
    batch, n, _ = x.shape
    heads, width = made.heads, made.head_dim
    c = math.exp(-math.exp(float(made.rule.beta)))
    y = torch.zeros_like(x)
    for b in range(batch):
        for i in range(n):
            parts = []
            for h in range(heads):
                rows = slice(h * width, (h + 1) * width)
                q = made.to_q.weight[rows] @ x[b, i]
                tau = 1 + c * math.log(i + 1) + math.tanh(float(made.query_weight[h] @ (q * q.sigmoid())))
                scores, values = [], []
                for j in range(i + 1):
                    scores.append(tau * float(q @ (made.to_k.weight[rows] @ x[b, j])) / math.sqrt(width))
                    v = made.to_v.weight[rows] @ x[b, j]
                    values.append(v * (1 + math.tanh(float(made.value_weight[h] @ (v * v.sigmoid())))))
                parts.append(torch.tensor(scores, dtype=x.dtype).softmax(0) @ torch.stack(values))
            y[b, i] = made.to_out.weight @ torch.cat(parts)
    return y


@torch.no_grad()
def test_the_layer_is_the_equation():
    made, x = layer(), inputs(7)
    torch.testing.assert_close(made(x), by_hand(made, x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_it_starts_as_softmax_within_c_ln_n():
    torch.manual_seed(0)
    plain, x = Softmax(32, 4, causal=True, kv_heads=2).double(), inputs(64)
    ours = SelectiveSelfAttention.from_dense(plain)
    apart = (ours(x) - plain(x)).abs().max()
    assert 0 < apart < 0.01
    torch.nn.init.constant_(ours.rule.beta, 10.0)  # c is 0
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_pitfall_a_higher_temperature_factor_multiplies_logits_and_so_sharpens():
    made, x = layer(values=False), inputs(40)
    eye = torch.eye(40, dtype=torch.float64)[None, None].expand(2, 4, 40, 40)
    entropies = []
    for size in (-0.9, 0.0, 0.9):
        q, k, _ = made.project(x)
        q[..., -1] = size
        weights = made.rule(q, k, eye, pattern=Causal())
        entropies.append(-(weights * weights.clamp(min=1e-30).log()).sum(-1).mean())
    assert entropies[0] > entropies[1] > entropies[2]


@torch.no_grad()
def test_pitfall_the_scale_is_one_of_the_query_row_not_of_the_key():
    made, x = layer(values=False), inputs(20)
    changed = made.project(x)[0]
    q, k, v = made.project(x)
    changed[:, :, 11, -1] += 0.7
    one, other = (made.rule(each, k, v, pattern=Causal()) for each in (q, changed))
    moved = (one - other).abs().amax((0, 1, 3)) > 1e-12
    assert moved.nonzero().flatten().tolist() == [11]


@torch.no_grad()
@pytest.mark.parametrize("spread", [0.5, 50.0])
def test_pitfall_the_inverse_temperature_is_never_negative(spread):
    made, x = layer(spread=spread), 4 * inputs(30)
    q, _, _ = made.project(x)
    ones = torch.cat([torch.ones_like(q[..., :1]), q[..., -1:]], dim=-1)
    assert (made.rule.temper(ones, torch.ones(1, 1, 1, dtype=torch.long)) >= 0).all()
    token = layer(spread=spread, temperature="token")
    assert (token.rule.temper(ones, torch.tensor([[[30]]])) >= 0).all()


@torch.no_grad()
@pytest.mark.parametrize("pattern", [None, Window(6)])
def test_pitfall_the_count_holds_the_cached_keys_while_decoding(pattern):
    made, x = layer(pattern=pattern), inputs(24)
    whole = made(x)
    y, state = made.prefill(x[:, :20])
    torch.testing.assert_close(y, whole[:, :20], rtol=0, atol=1e-12)
    for t in range(20, 24):
        y, state = made.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_count_leaves_out_padding():
    made, x = layer(causal=False), inputs(12)
    padding = torch.arange(12).expand(2, -1) < 9
    torch.testing.assert_close(made(x, padding=padding)[:, :9], made(x[:, :9]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_pitfall_the_gate_scales_values_and_not_what_passes_by():
    made, x = layer(), inputs(9)
    q, k, v = made.project(x)
    raw = made.to_v(x).unflatten(-1, (4, -1)).transpose(1, 2)
    assert ((v / raw - 1).abs() < 1).all() and (v / raw - 1).abs().max() > 0.1
    without = layer(values=False)
    without.load_state_dict(made.state_dict(), strict=False)
    for one, other in zip((q, k), without.project(x)):  # queries and keys know nothing of the gate
        assert torch.equal(one, other)


@torch.no_grad()
def test_stepping_over_a_padded_context():
    made = layer(context_dim=24)
    x, context = inputs(5), inputs(8, dim=24, seed=3)
    padding = torch.arange(8).expand(2, -1) < torch.tensor([[8], [3]])
    whole, state = made(x, context, padding), made.start(2, context=context, padding=padding)
    for t in range(5):
        y, state = made.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)


def test_it_adds_less_than_half_a_percent():
    def size(module):
        return sum(parameter.numel() for parameter in module.parameters())

    for dim in (128, 512):
        plain, ours = (create(name, dim=dim, heads=8) for name in ("softmax", "selective-self-attention"))
        assert size(ours) - size(plain) == 2 * dim + 1
        assert size(ours) < 1.005 * size(plain)


def test_the_parts_can_be_left_out():
    names = {
        choice: {name for name, _ in SelectiveSelfAttention(16, 2, temperature=choice).named_parameters()}
        for choice in ("both", "token", "count")
    }
    assert names["both"] - names["token"] == {"rule.beta"}
    assert names["both"] - names["count"] == {"query_weight"}
