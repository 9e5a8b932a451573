"""Few queries without keys and values, against attention with both made."""

import pytest
import torch
from torch import nn

from regardant.core.few_queries import hear


def parts(asking=1, heads=2, each=8, dim=12, n=9, *, bias=True):
    torch.manual_seed(0)
    layers = [nn.Linear(dim, heads * each, bias=bias).double() for _ in range(2)]
    q = torch.randn(2, heads, asking, each, dtype=torch.float64, requires_grad=True)
    return q, torch.randn(2, n, dim, dtype=torch.float64, requires_grad=True), layers


def written_out(q, x, layers, scale=None):
    k, v = (layer(x).unflatten(-1, (q.shape[1], -1)).transpose(1, 2) for layer in layers)
    weights = (q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values_and_gradients_are_those_of_keys_and_values(bias, scale):
    q, x, layers = parts(2, bias=bias)
    found, wanted = hear(q, x, *layers, scale=scale), written_out(q, x, layers, scale)
    assert torch.allclose(found, wanted, atol=1e-12)
    grad = torch.randn_like(wanted)
    leaves = [q, x, *(parameter for layer in layers for parameter in layer.parameters())]
    for ours, theirs in zip(*(torch.autograd.grad(out, leaves, grad) for out in (found, wanted))):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_may_make_both(bias):
    q, x, (keys, values) = parts(bias=bias)
    both = nn.Linear(12, 32, bias=bias).double()
    with torch.no_grad():
        both.weight.copy_(torch.cat([keys.weight, values.weight]))
        if bias:
            both.bias.copy_(torch.cat([keys.bias, values.bias]))
    assert torch.allclose(hear(q, x, both), written_out(q, x, (keys, values)), atol=1e-12)
    both.register_forward_hook(lambda *_: None)
    assert torch.allclose(hear(q, x, both), written_out(q, x, (keys, values)), atol=1e-12)


@pytest.mark.parametrize(("asking", "asked"), [(1, False), (2, False), (3, True)])
def test_keys_and_values_are_made_for_many_queries_only(asking, asked, monkeypatch):
    q, x, layers = parts(asking)
    called = []
    monkeypatch.setattr(layers[0], "forward", lambda x: called.append(1) or nn.Linear.forward(layers[0], x))
    assert torch.allclose(hear(q, x, *layers), written_out(q, x, layers), atol=1e-12)
    assert len(called) == 1 + asked


def test_pitfall_who_listens_to_a_layer_hears_it():
    q, x, layers = parts()
    seen = []
    layers[1].register_forward_hook(lambda _, given, out: seen.append(out.shape))
    assert torch.allclose(hear(q, x, *layers), written_out(q, x, layers), atol=1e-12)
    assert seen == [(2, 9, 16)] * 2
