"""Mixture-of-head attention."""

import pytest
import torch

from regardant.core.record import Record
from regardant.sequence.moh import MoH
from regardant.sequence.softmax import Softmax

LENGTHS = [1, 2, 17, 64, 257]
CONFIGS = [
    {},
    {"rescale": False},
    {"shared_heads": 0, "top_k": 2},
    {"shared_heads": 1, "top_k": 1},
    {"shared_heads": 3, "top_k": 5, "rescale": False, "kv_heads": 2},
]


def layer(causal=False, seed=0, **config):
    torch.manual_seed(seed)
    return MoH(32, 8, causal=causal, **config).double()


def inputs(n, batch=2, dim=32, seed=1):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("causal", [False, True])
def test_forward_is_the_equation_and_so_are_its_gradients(config, causal):
    moh, x = layer(causal, **config), inputs(17).requires_grad_()
    parameters = [x, *moh.parameters()]
    fast, plain = moh(x), moh.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), parameters)
    theirs = torch.autograd.grad((plain * weight).sum(), parameters)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_stepping_equals_forward(n, kv_heads):
    moh, x = layer(True, kv_heads=kv_heads), inputs(n)
    with torch.no_grad():
        state, outputs = moh.start(2), []
        for t in range(n):
            y, state = moh.step(x[:, t], state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), moh(x), rtol=0, atol=1e-9)


def test_the_past_does_not_move_with_the_future_nor_does_its_choice_of_heads():
    moh, x = layer(True), inputs(64)
    changed = torch.cat([x[:, :40], 5 * inputs(24, seed=9)], dim=1)
    torch.testing.assert_close(moh(x)[:, :40], moh(changed)[:, :40], rtol=0, atol=1e-12)
    assert torch.equal(moh.route(x)[0][:, :40], moh.route(changed)[0][:, :40])


@pytest.mark.parametrize("shared_heads", [0, 1, 2, 5])
def test_zero_routers_and_all_heads_chosen_are_the_dense_layer(shared_heads):
    torch.manual_seed(0)
    dense, x = Softmax(32, 8, causal=True, bias=True, kv_heads=4).double(), inputs(33)
    moh = MoH.from_dense(dense, shared_heads=shared_heads)
    torch.testing.assert_close(moh(x), dense(x), rtol=0, atol=1e-12)
    assert moh.top_k == 8 - shared_heads


def test_three_quarters_of_the_gates_are_open_by_default():
    gates, _ = layer().route(inputs(100))
    assert (gates > 0).sum(-1).eq(6).all()
    assert (gates[..., :2] > 0).all()


def test_pitfall_without_rescaling_the_output_shrinks_by_about_the_number_of_heads():
    x, ours, literal = inputs(200), layer(), layer(rescale=False)
    active = ours.route(x)[0].sum(-1).mean() / 6
    assert abs(active - 1) < 0.2
    assert literal.route(x)[0].sum(-1).mean() < 1.01
    torch.testing.assert_close(literal.route(x)[0].sum(-1) <= 1 + 1e-12, torch.ones(2, 200, dtype=torch.bool))


def test_pitfall_gates_multiply_head_outputs_before_the_output_projection_not_the_logits():
    moh, x = layer(shared_heads=0, top_k=1), inputs(9)
    q, k, v = moh.project(x)
    heads = moh.attend_reference(q, k, v, x=x, pattern=None)
    gates = moh.route(x)[0]
    chosen = gates.argmax(-1)
    assert gates.max(-1).values.sub(1).abs().max() < 1e-12
    own = heads.transpose(1, 2).gather(2, chosen[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
    slices = moh.to_out.weight.view(32, 8, 4).permute(1, 2, 0)[chosen]
    torch.testing.assert_close(moh(x), (own[:, :, None] @ slices)[:, :, 0], rtol=0, atol=1e-12)


def test_pitfall_routing_is_per_token_not_per_sequence():
    moh, x = layer(), inputs(50)
    gates, _ = moh.route(x)
    assert len({tuple(row) for row in (gates[0] > 0).tolist()}) > 1
    torch.testing.assert_close(moh.route(x[:, 7:8])[0], gates[:, 7:8])


def test_pitfall_the_balance_loss_goes_into_the_record_and_nowhere_else():
    moh, x, record = layer(balance=0.5), inputs(40), Record()
    before = set(vars(moh))
    moh(x, record=record)
    assert set(vars(moh)) == before
    gates, probability = moh.route(x)
    load = (gates[..., 2:] > 0).double().mean((0, 1))
    expected = 0.5 * (load * probability.mean((0, 1))).sum()
    torch.testing.assert_close(record.losses["balance"], [expected])
    torch.testing.assert_close(record.seen["gates"], [gates])
    assert torch.autograd.grad(record.loss(), moh.to_routed.weight)[0].abs().max() > 0


def test_an_even_load_costs_k_over_the_routed_heads():
    moh, record = layer(), Record()
    for router in (moh.to_routed, moh.to_shared, moh.to_sides):
        torch.nn.init.zeros_(router.weight)
    moh(inputs(4), record=record)
    torch.testing.assert_close(record.loss(), torch.tensor(0.01 * 4 / 6, dtype=torch.float64))


def test_padding_leaks_neither_into_outputs_nor_into_the_balance_loss():
    moh, x, changed = layer(), inputs(20), inputs(20)
    padding = torch.ones(2, 20, dtype=torch.bool)
    padding[0, 12:] = padding[1] = False
    changed[~padding] = 100.0
    one, other = Record(), Record()
    a, b = moh(x, padding=padding, record=one), moh(changed, padding=padding, record=other)
    torch.testing.assert_close(a[padding], b[padding], rtol=0, atol=1e-12)
    torch.testing.assert_close(one.loss(), other.loss(), rtol=0, atol=1e-12)
    assert a.isfinite().all()


def test_cross_attention_routes_on_the_query():
    torch.manual_seed(0)
    moh = MoH(32, 8, context_dim=24, causal=True).double()
    x, context = inputs(11), inputs(7, dim=24)
    torch.testing.assert_close(moh(x, context), moh.reference(x, context), rtol=0, atol=1e-9)
    state = moh.start(2, context=context)
    y, state = moh.step(x[:, 0], state)
    torch.testing.assert_close(y, moh(x, context)[:, 0], rtol=0, atol=1e-9)


def test_bfloat16_chooses_the_same_heads_and_stays_near():
    moh = layer().to(torch.bfloat16)
    exact = layer().double()
    exact.load_state_dict({name: value.double() for name, value in moh.state_dict().items()})
    x = inputs(64).to(torch.bfloat16)
    assert torch.equal(moh.route(x)[0] > 0, exact.route(x.double())[0] > 0)
    wrong = (moh(x).double() - exact(x.double())).norm() / exact(x.double()).norm()
    assert wrong < 0.02


@pytest.mark.parametrize("config", [{"shared_heads": 8}, {"top_k": 7}, {"top_k": 0}, {"balance": -1.0}])
def test_bad_configuration_says_what_would_be_right(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        MoH(32, 8, **config)
