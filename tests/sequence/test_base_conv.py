"""BaseConv: the least that a gated convolution can be."""

import pytest
import torch

from regardant.sequence.base_conv import BaseConv, LongBaseConv


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(kind=BaseConv, seed=0, **own):
    torch.manual_seed(seed)
    return kind(6, **own).double()


def test_the_equation_written_out():
    mixer, x = layer(), inputs(7)
    gate = x @ mixer.to_gate.weight.T + mixer.to_gate.bias
    padded = torch.nn.functional.pad(x, (0, 0, 2, 0))
    weight = mixer.filter.weight[:, 0]
    conv = sum(padded[:, at : at + 7] * weight[:, at] for at in range(3)) + mixer.filter.bias
    torch.testing.assert_close(mixer(x), gate * conv + x, rtol=0, atol=1e-12)


def test_the_long_filter_written_out():
    mixer, x = layer(LongBaseConv, max_length=50), inputs(9)
    h = mixer.filter(9)
    gate = x @ mixer.to_gate.weight.T + mixer.to_gate.bias
    conv = torch.stack([sum(h[s] * x[:, t - s] for s in range(t + 1)) for t in range(9)], dim=1)
    torch.testing.assert_close(mixer(x), gate * (conv + mixer.filter_bias) + x, rtol=0, atol=1e-12)


def test_pitfall_the_input_is_added_inside_the_layer():
    mixer, x = layer(), inputs(5)
    with torch.no_grad():
        mixer.to_gate.weight.zero_(), mixer.to_gate.bias.zero_()
    assert torch.equal(mixer(x), x)


def test_the_filter_does_not_depend_on_the_length_at_hand():
    mixer = layer(LongBaseConv, max_length=64)
    torch.testing.assert_close(mixer.filter(64)[:10], mixer.filter(10), rtol=0, atol=1e-12)


@pytest.mark.parametrize("own", [{"kernel": 1}, {"kernel": 4}, {"max_length": 40}])
def test_segments_and_steps_go_on_where_the_last_ended(own):
    mixer, x = layer(LongBaseConv if "max_length" in own else BaseConv, **own), inputs(30)
    whole = mixer(x)
    y, state = mixer.prefill(x[:, :11])
    more, state = mixer.extend(x[:, 11:20], state)
    found = [y, more]
    for t in range(20, 30):
        one, state = mixer.step(x[:, t], state)
        found.append(one[:, None])
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=0, atol=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match="kernel is 0"):
        layer(kernel=0)
    with pytest.raises(ValueError, match="max_length is 0"):
        layer(LongBaseConv, max_length=0)
    with pytest.raises(ValueError, match="reaches length 9, but the filter covers max_length=8"):
        layer(LongBaseConv, max_length=8)(inputs(9))
    with pytest.raises(ValueError, match="causal=False"):
        layer(causal=False)
    with pytest.raises(ValueError, match="another configuration"):
        layer(kernel=4).step(inputs(1)[:, 0], layer(kernel=3).start(2))
