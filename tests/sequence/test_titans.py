"""The three layouts of Titans: memory as context, as a gate, as a layer."""

import pytest
import torch

from regardant.sequence.titans import TitansMAC, TitansMAG, TitansMAL

LAYOUTS = {TitansMAC: {"segment": 6}, TitansMAG: {"window": 5}, TitansMAL: {"window": 5}}


def layer(layout, seed=0, **config):
    torch.manual_seed(seed)
    return layout(16, 2, **(LAYOUTS[layout] | {"chunk": 4, "persistent": 2} | config)).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "config", [{}, {"persistent": 0, "kv_heads": 1}, {"position": "rotary", "bias": True}]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_is_the_equation_and_so_are_its_gradients(layout, config):
    titans, x = layer(layout, **config), inputs(15).requires_grad_()
    parameters = [x, *titans.parameters()]
    fast, plain = titans(x), titans.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((plain * weight).sum(), parameters, allow_unused=True)
    for one, other in zip(ours, theirs):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("position", ["none", "rotary", "learned"])
@pytest.mark.parametrize("cuts", [(6, 12), (1, 8), (5, 7, 15)])
def test_segments_with_a_carried_state_are_the_whole_sequence(layout, position, cuts):
    titans, x = layer(layout, position=position, max_length=32), inputs(17)
    whole, state, parts = titans(x), titans.start(2), []
    for segment in x.tensor_split(cuts, dim=1):
        y, state = titans.extend(segment, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stepping_equals_forward_and_the_state_does_not_grow(layout):
    titans, x = layer(layout), inputs(26)
    with torch.no_grad():
        y, state, sizes = titans(x), titans.start(2), []
        for t in range(26):
            out, state = titans.step(x[:, t], state)
            torch.testing.assert_close(out, y[:, t], rtol=0, atol=1e-12)
            sizes.append(state.nbytes)
    assert sizes[13] == sizes[25] and max(sizes[:12]) == max(sizes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_reaches_behind_the_window_and_the_segment(layout):
    titans, x = layer(layout), inputs(24).requires_grad_()
    slope = torch.autograd.grad(titans(x)[:, -1].sum(), x)[0][:, 0]
    assert slope.abs().max() > 1e-6


def test_pitfall_a_token_sees_what_memory_said_to_earlier_tokens_and_not_to_later_ones():
    titans, x = layer(TitansMAC), inputs(6)
    changed = x.clone()
    changed[:, 4:] = 5 * inputs(2, seed=3)
    torch.testing.assert_close(titans(x)[:, :4], titans(changed)[:, :4], rtol=0, atol=1e-12)


def test_mac_is_its_equation_for_one_segment():
    """Attention to p ‖ h ‖ S written out for the last token, the memory's answer h from the first weights."""
    titans, x = layer(TitansMAC), inputs(6)
    h, _ = titans.memory.read(x, titans.start(2).asked, titans.memory.start_of_queries(2))
    context = torch.cat([titans.persistent.expand(2, -1, -1), h, x], dim=1)
    attention = titans.attention
    q = attention.to_q(x[:, -1:]).unflatten(-1, (2, 8)).transpose(1, 2)
    k, v = (to(context).unflatten(-1, (2, 8)).transpose(1, 2) for to in (attention.to_k, attention.to_v))
    heads = (q @ k.mT / 8**0.5).softmax(-1) @ v
    last = attention.to_out(heads.transpose(1, 2).flatten(2))
    _, state = titans.extend(x[:, :5], titans.start(2))
    m, _ = titans.memory.run(last, state.memory)
    torch.testing.assert_close(titans(x)[:, -1:], titans.gating(last, m), rtol=0, atol=1e-12)


def test_mac_asks_the_memory_of_earlier_segments_only():
    titans = layer(TitansMAC)
    _, state = titans.extend(inputs(5), titans.start(2))
    assert state.asked[0] is not state.memory.inner.weights[0]
    torch.testing.assert_close(state.asked, titans.start(2).asked)
    _, state = titans.extend(inputs(1), state)
    torch.testing.assert_close(state.asked, state.memory.inner.weights)


def test_the_memory_of_mag_and_mal_has_read_the_persistent_tokens():
    for layout in (TitansMAG, TitansMAL):
        titans = layer(layout)
        _, read = titans.memory.run(titans.persistent.expand(2, -1, -1), titans.memory.start(2))
        torch.testing.assert_close(titans.start(2).memory.inner.layers, read.inner.layers)
        assert titans.start(2).keys.shape == (2, 2, 2, 8)


def test_persistent_tokens_are_seen_from_far_behind_the_window():
    titans, x = layer(TitansMAL, momentum=False), inputs(20)
    y = titans(x)
    with torch.no_grad():
        titans.attention.to_v.weight.zero_()
    state = titans.start(2)
    _, state = titans.extend(x[:, :19], state)
    assert state.keys.shape[2] == 2 + 4
    assert (y[:, -1] - titans(x)[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_from_another_configuration_is_refused(layout):
    titans, x = layer(layout), inputs(5)
    option = {TitansMAC: "segment", TitansMAG: "window", TitansMAL: "window"}[layout]
    _, other = layer(layout, **{option: 3}).prefill(inputs(16))
    for state in (other, layer(layout, persistent=3).start(2), layer(layout, depth=1).start(2)):
        with pytest.raises(ValueError, match="of another configuration or batch"):
            titans.extend(x, state)
    foreign = layer(TitansMAG if layout is TitansMAC else TitansMAC).start(2)
    with pytest.raises(ValueError, match=f"{layout.__name__} goes on from what its own start"):
        titans.step(x[:, 0], foreign)
    with pytest.raises(ValueError, match="there is no token to read"):
        titans.extend(x[:, :0], titans.start(2))


def test_bad_configuration_says_what_would_be_right():
    for layout, config in (
        (TitansMAC, {"segment": 0}),
        (TitansMAG, {"window": 0}),
        (TitansMAL, {"persistent": -1}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
            layer(layout, **config)
    with pytest.raises(ValueError, match="a bias on logits"):
        layer(TitansMAG, position="alibi")
