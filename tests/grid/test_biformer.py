"""Bi-level routing attention: full attention where all is read, its pitfalls, and the released last layer."""

import pytest
import torch
from torch.nn.functional import conv2d

from regardant.claim.count import flops
from regardant.core.grid_attention import WholeMapAttention
from regardant.core.record import Record
from regardant.grid.biformer import AttentionBesideConvolution, BiLevelRoutingAttention


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(*arguments, **options):
    torch.manual_seed(0)
    return BiLevelRoutingAttention(*arguments, **options).double()


def convolved(convolution, x):
    y = conv2d(x.permute(0, 3, 1, 2), convolution.weight, convolution.bias, padding=2, groups=x.shape[-1])
    return y.permute(0, 2, 3, 1)


def masked(layer, x, sees):
    """Full attention under a mask [b, n, n], all written out, and the convolution of the values."""
    q, k, v = (part(x).flatten(1, 2) for part in (layer.to_q, layer.to_k, layer.to_v))
    heads = [part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (q, k, v)]
    logits = (heads[0] @ heads[1].mT * layer.dim**-0.5).masked_fill(~sees[:, None], -torch.inf)
    heard = (logits.softmax(-1) @ heads[2]).transpose(1, 2).reshape(x.shape)
    return layer.to_out(heard + convolved(layer.local.convolution, layer.to_v(x)))


@pytest.mark.parametrize("size", [(6, 9), (5, 7), (1, 1)])
def test_with_all_regions_it_is_full_attention_and_padding_is_never_seen(size):
    """Pitfall: where regions do not fit (5×7 in thirds), what fills them up takes no part."""
    layer, x = made(8, 2, regions=3, top=9), drawn(2, *size, 8)
    everything = torch.ones(2, size[0] * size[1], size[0] * size[1], dtype=torch.bool)
    torch.testing.assert_close(layer(x), masked(layer, x, everything), rtol=0, atol=1e-12)


def test_pitfall_no_gradient_goes_through_the_choice():
    """Output and gradients are those of attention under the regions that the record hears of."""
    layer, x, record = made(8, 2, regions=2, top=2), drawn(1, 6, 8, 8).requires_grad_(), Record()
    found = layer(x, record=record)
    (routed,) = record.seen["regions"]
    region = (torch.arange(6)[:, None] // 3 * 2 + torch.arange(8) // 4).flatten()
    reads = torch.zeros(1, 4, 4, dtype=torch.bool).scatter(-1, routed, True)
    right = masked(layer, x, reads[:, region][..., region])
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
    weight = drawn(*found.shape, seed=1)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, right))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_pitfall_all_heads_read_the_same_regions():
    """One head wants region 1, the other region 2, and both rather have 3 than the other's."""
    layer = made(2, 2, regions=2, top=1, local=0)
    for part in (layer.to_q, layer.to_k):
        with torch.no_grad():
            part.weight.copy_(torch.eye(2))
            part.bias.zero_()
    x = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    x[0, 0, 0] = torch.tensor([1.0, 1.0])
    x[0, 0, 1], x[0, 1, 0], x[0, 1, 1] = (torch.tensor(key) for key in ([3.0, -9], [-9.0, 3], [2.0, 2]))
    record = Record()
    layer(x, record=record)
    assert record.seen["regions"][0][0, 0].tolist() == [3]


def test_pitfall_regions_is_a_number_and_not_a_size():
    layer = made(8, 2, regions=7)
    assert layer.cut(14, 14).cell == (2, 2) and layer.cut(28, 56).cell == (4, 8)
    assert layer.cut(28, 56).count == (7, 7)


def test_means_are_of_what_lies_on_the_map():
    """In a region that is cut short a bias would else weigh more than what is there."""
    layer, x, record = made(4, 1, regions=2, top=1), drawn(1, 3, 3, 4), Record()
    layer(x, record=record)
    q, k = layer.to_q(x), layer.to_k(x)
    parts = [(slice(0, 2), slice(0, 2)), (slice(0, 2), slice(2, 3)), (slice(2, 3), slice(0, 2))]
    parts.append((slice(2, 3), slice(2, 3)))
    means = [torch.stack([each[0][part].mean((0, 1)) for part in parts]) for each in (q, k)]
    assert record.seen["regions"][0][0, :, 0].tolist() == (means[0] @ means[1].mT).argmax(-1).tolist()


def test_pitfall_work_and_keys_grow_with_what_is_read():
    """A region more to read is as many more keys to gather, and to attend to."""

    def work(top):
        layer, x = BiLevelRoutingAttention(8, 2, regions=8, top=top, local=0), torch.zeros(1, 16, 16, 8)
        layer(x)  # the first call in a process also tries out what the machine can do
        return flops(lambda: layer(x))

    few, more, many = (work(top) for top in (4, 8, 16))
    assert many - few == 3 * (more - few) == 12 * 2 * 2 * 256 * 4 * 8


def test_the_number_of_regions_that_costs_least_is_taken():
    def work(side):
        layer = BiLevelRoutingAttention(8, 2, regions=side, top=4, local=0)
        return flops(lambda: layer(torch.zeros(1, 64, 64, 8)))

    least = BiLevelRoutingAttention(8, 2).cut(64, 64).count
    assert least == (16, 16)
    assert work(16) < min(work(8), work(32))


def test_the_released_last_layer_convolves_its_input():
    torch.manual_seed(0)
    layer, x = AttentionBesideConvolution(8, 2).double(), drawn(2, 3, 5, 8)
    plain = WholeMapAttention(8, 2).double()
    with torch.no_grad():
        for part, other in ((plain.to_qkv, layer.to_qkv), (plain.to_out, layer.to_out)):
            part.weight.copy_(other.weight)
            part.bias.zero_() if other.bias is None else part.bias.copy_(other.bias)
    right = plain(x) + convolved(layer.local.convolution, x) @ layer.to_out.weight.mT
    torch.testing.assert_close(layer(x), right, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(regions=0), "regions is 0, but a side has at least 1"),
        (dict(top=0), "top is 0, but a region reads at least 1"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        BiLevelRoutingAttention(8, 2, **options)
