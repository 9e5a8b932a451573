"""Grassmann flows: planes of pairs of tokens."""

import pytest
import torch

from regardant.sequence.grassmann_flows import GrassmannFlows, plucker


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return GrassmannFlows(12, **({"reduced": 5, "offsets": (1, 2, 5)} | config)).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def vectors(count, width=5, seed=0):
    return torch.randn(count, 7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", [{}, {"offsets": (3,)}, {"reduced": 2}, {"offsets": (16, 1)}])
def test_forward_is_the_equation_and_so_are_its_gradients(config):
    flows, x = layer(**config), inputs(9).requires_grad_()
    parameters = [x, *flows.parameters()]
    fast, plain = flows(x), flows.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((plain * weight).sum(), parameters, allow_unused=True)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_coordinates_by_hand():
    u, v = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    assert plucker(u, v).tolist() == [1 * 5 - 2 * 4, 1 * 6 - 3 * 4, 2 * 6 - 3 * 5]


def test_coordinates_satisfy_the_plucker_relation():
    u, v = vectors(2)
    full = torch.zeros(7, 5, 5, dtype=torch.float64)
    i, j = torch.triu_indices(5, 5, 1)
    full[:, i, j] = plucker(u, v)
    p = full - full.mT
    for a, b, c, d in ((0, 1, 2, 3), (0, 1, 2, 4), (1, 2, 3, 4)):
        relation = p[:, a, b] * p[:, c, d] - p[:, a, c] * p[:, b, d] + p[:, a, d] * p[:, b, c]
        torch.testing.assert_close(relation, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)


def test_another_basis_of_the_plane_gives_the_same_direction_up_to_its_sign():
    u, v = vectors(2)
    p, turned = plucker(u, v), plucker(2 * u - 3 * v, 0.5 * u + v)
    torch.testing.assert_close(turned, (2 * 1 + 3 * 0.5) * p, rtol=0, atol=1e-12)
    mirrored = plucker(u, -v)
    torch.testing.assert_close(
        mirrored / mirrored.norm(dim=-1, keepdim=True), -p / p.norm(dim=-1, keepdim=True)
    )


def test_stepping_and_segments_equal_forward():
    flows, x = layer(), inputs(13)
    with torch.no_grad():
        whole, state = flows(x), flows.start(2)
        for t in range(13):
            y, state = flows.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)
        state, parts = flows.start(2), []
        for segment in x.tensor_split((2, 3, 10), dim=1):
            y, state = flows.extend(segment, state)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    assert state.reduced.shape == (2, 5, 5)


@pytest.mark.parametrize("offsets", [(1, 2), (300, 1)])
def test_tiles_see_each_other(offsets):
    """A sequence longer than a tile is what its tokens are one by one, near partners and far ones."""
    flows, x = layer(offsets=offsets), inputs(600, batch=1)
    with torch.no_grad():
        whole, state = flows(x), flows.start(1)
        for t in range(600):
            y, state = flows.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)


def test_pitfall_pairs_look_back_and_never_ahead():
    flows, x = layer(), inputs(12)
    changed = torch.cat([x[:, :7], 4 * inputs(5, seed=3)], dim=1)
    torch.testing.assert_close(flows(x)[:, :7], flows(changed)[:, :7], rtol=0, atol=1e-12)
    slope = torch.autograd.grad(flows(x.requires_grad_())[:, 9].sum(), x)[0].abs().amax((0, 2))
    assert slope.nonzero().flatten().tolist() == [4, 7, 8, 9]


def test_pitfall_the_mean_is_over_the_offsets_that_exist():
    """At t = 1 there is one partner: its flow is not divided by three; at t = 0 there is none, and g is 0."""
    flows, x = layer(), inputs(2, batch=1)
    z = flows.to_reduced(x)[0]
    p = plucker(z[1], z[0])
    g = flows.to_flow(p / p.norm())
    for t, flow in ((0, torch.zeros_like(g)), (1, g)):
        gate = torch.sigmoid(flows.to_gate(torch.cat([x[0, t], flow])))
        blend = flows.norm(gate * x[0, t] + (1 - gate) * flow)
        torch.testing.assert_close(flows(x)[0, t], blend, rtol=0, atol=1e-12)


def test_pitfall_the_output_is_a_blend_and_no_residual_sum():
    flows, x = layer(), inputs(8)
    with torch.no_grad():
        flows.to_gate.weight.zero_()
        flows.to_gate.bias.fill_(60.0)
        torch.testing.assert_close(flows(x), flows.norm(x), rtol=0, atol=1e-12)
        flows.to_gate.bias.fill_(-60.0)
        flows.to_flow.weight.zero_()
        torch.testing.assert_close(flows(x)[:, 1:], flows.norm(flows.to_flow.bias).expand(2, 7, -1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pitfall_a_token_and_its_copy_span_no_plane(dtype):
    flows = layer().to(dtype)
    x = inputs(1).expand(-1, 9, -1).to(dtype).requires_grad_()
    y = flows(x)
    flow = flows.to_flow.bias
    gate = torch.sigmoid(flows.to_gate(torch.cat([x, flow.expand_as(x)], dim=-1)))
    wanted = flows.norm(torch.lerp(flow.expand_as(x), x, gate))
    torch.testing.assert_close(y[:, 1:], wanted[:, 1:])
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_padding_is_nobodys_partner():
    flows, x = layer(offsets=(1, 2)), inputs(8)
    real = torch.ones(2, 8, dtype=torch.bool)
    real[:, 4] = False
    changed = x.clone()
    changed[:, 4] = 100.0
    one, other = flows(x, padding=real), flows(changed, padding=real)
    torch.testing.assert_close(one[real], other[real], rtol=0, atol=1e-12)
    torch.testing.assert_close(one, flows.reference(x, padding=real), rtol=0, atol=1e-9)


def test_a_state_from_another_configuration_is_refused():
    flows, x = layer(), inputs(3)
    for other in (layer(offsets=(1, 7)), layer(reduced=4)):
        with pytest.raises(ValueError, match="state is a FlowsState of another configuration"):
            flows.extend(x, other.start(2))


@pytest.mark.parametrize(
    "config", [{"reduced": 1}, {"offsets": ()}, {"offsets": (0, 1)}, {"offsets": (2, 2)}]
)
def test_bad_configuration_says_what_would_be_right(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        layer(**config)
