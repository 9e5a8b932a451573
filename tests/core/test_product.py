"""x Wᵀ + b by whichever library is faster: the same numbers, gradients and counts as torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from regardant.core import product
from regardant.core.product import ENOUGH, Linear, is_linear, linear, projections


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN asked on whatever processor, and how often it is."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(product, "onednn_leads", lambda: True)
    own, asked = product._product, []
    monkeypatch.setattr(product, "_product", lambda *given: asked.append(1) or own(*given))
    return asked


def parts(rows=520, before=256, after=256, bias=True):
    assert rows * before * after >= ENOUGH
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows // 2, before, generator=generator)
    weight = torch.randn(after, before, generator=generator)
    return x, weight, torch.randn(after, generator=generator) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_it_is_torchs_product(onednn, bias, layout):
    x, weight, bias = parts(bias=bias)
    if layout == "transposed":
        x, weight = x.transpose(1, 2).contiguous().transpose(1, 2), weight.mT.contiguous().mT
    found = linear(x, weight, bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias), atol=1e-4, rtol=1e-5)
    assert len(onednn) == 1


@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, False)])
def test_gradients_are_torchs_once_and_twice(onednn, wanted):
    given = [part.requires_grad_(want) for part, want in zip(parts(), wanted)]
    learned = [part for part in given if part.requires_grad]
    found = []
    for multiply in (linear, F.linear):
        out = multiply(*given)
        first = torch.autograd.grad(out.square().sum() * 1e-3, learned, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(each.square().sum() for each in first), learned)])
    for ours, its in zip(*found):
        torch.testing.assert_close(ours, its, atol=1e-4 * float(its.detach().abs().max()), rtol=1e-4)
    assert onednn


def test_a_layer_is_torchs_layer_with_other_products(onednn):
    torch.manual_seed(0)
    ours = Linear(256, 300)
    torch.manual_seed(0)
    its = nn.Linear(256, 300)
    assert list(ours.state_dict()) == list(its.state_dict())
    x = parts()[0]
    torch.testing.assert_close(ours(x), its(x), atol=1e-5, rtol=1e-5)
    ours(x).square().mean().backward()
    its(x).square().mean().backward()
    torch.testing.assert_close(ours.weight.grad, its.weight.grad, atol=1e-6, rtol=1e-4)
    assert onednn
    assert torch.equal(ours(x[:, :3]), its(x[:, :3]))  # few rows: the same function of torch's
    assert is_linear(ours) and is_linear(its)
    assert not is_linear(nn.Bilinear(2, 2, 2))


def test_operations_are_counted_as_torchs_are(onednn):
    x, weight, bias = parts()
    with FlopCounterMode(display=False) as seen:
        linear(x, weight, bias)
    assert seen.get_total_flops() == 2 * x.numel() * len(weight)
    assert not onednn


def test_what_is_not_plain_goes_the_common_way(onednn):
    x, weight, bias = parts()
    expected = F.linear(x, weight, bias)
    for_each = torch.vmap(lambda row: linear(row, weight, bias))(x)
    torch.testing.assert_close(for_each, expected, atol=1e-4, rtol=1e-5)
    _, along = torch.func.jvp(lambda at: linear(at, weight, bias), (x,), (x,))
    torch.testing.assert_close(along, F.linear(x, weight), atol=1e-4, rtol=1e-5)
    slope = torch.func.grad(lambda at: linear(at, weight, bias).sum())(x)
    torch.testing.assert_close(slope[0, 0], weight.sum(0), atol=1e-3, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert linear(x.double(), weight.double(), bias.double()).dtype == torch.float64
    assert linear(x.to("meta"), weight.to("meta"), bias.to("meta")).shape == expected.shape
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x, weight.double(), bias)
    assert not onednn


def test_a_traced_layer_holds_torchs_own_operations(onednn):
    layer, x = Linear(256, 256), parts()[0]
    program = torch.export.export(layer, (x,))
    assert torch.ops.aten.linear.default in {node.target for node in program.graph.nodes}
    torch.testing.assert_close(program.module()(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [None, 1])
def test_projections_of_one_input_are_each_layers_and_so_are_their_gradients_once_and_twice(bias, frozen):
    torch.manual_seed(0)
    layers = [Linear(6, width, bias=bias) for width in (8, 4, 4)]
    if frozen is not None:
        layers[frozen].requires_grad_(False)
    x = torch.randn(2, 5, 6, requires_grad=True)
    learned = [x, *(each for layer in layers for each in layer.parameters() if each.requires_grad)]
    found = []
    for outs in (projections(x, *layers), tuple(F.linear(x, each.weight, each.bias) for each in layers)):
        loss = sum(out.pow(3).sum() for out in outs)
        first = torch.autograd.grad(loss, learned, create_graph=True)
        found.append([*outs, *first, *torch.autograd.grad(sum(each.pow(2).sum() for each in first), learned)])
    for ours, its in zip(*found):
        torch.testing.assert_close(ours, its, atol=1e-4 * float(its.detach().abs().max()), rtol=1e-4)
    names = [out.grad_fn.name() for out in projections(x, *layers)]
    assert names == ["_ProductsBackward"] * 3


def test_projections_use_only_some_of_the_layers_gradients():
    layers, x = [Linear(6, 4), Linear(6, 4)], torch.randn(3, 6, requires_grad=True)
    projections(x, *layers)[1].sum().backward()
    torch.testing.assert_close(x.grad, layers[1].weight.sum(0).expand(3, -1))
    assert not layers[0].weight.grad.any()


def test_pitfall_whoever_listens_to_a_layer_hears_it():
    layers, x, heard = [Linear(6, 4), Linear(6, 4)], torch.randn(3, 6, requires_grad=True), []
    hook = layers[1].register_forward_hook(lambda layer, given, out: heard.append(1) or 2 * out)
    first, second = projections(x, *layers)
    torch.testing.assert_close(second, 2 * F.linear(x, layers[1].weight, layers[1].bias))
    torch.testing.assert_close(first, F.linear(x, layers[0].weight, layers[0].bias))
    assert heard == [1]
    hook.remove()
    everywhere = nn.modules.module.register_module_full_backward_hook(lambda layer, *_: heard.append(layer))
    projections(x, *layers)[0].sum().backward()
    everywhere.remove()
    assert heard[1:] == [layers[0]]
    changed = nn.utils.parametrizations.weight_norm(Linear(6, 4))
    torch.testing.assert_close(projections(x, changed)[0], changed(x))
    with torch.no_grad():
        assert projections(x, *layers)[0].grad_fn is None
