"""What multi-head layers take, and a sentence for each thing that they do not."""

import pytest
import torch

import regardant
from regardant.core import checks
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Causal, PerHead, Window
from regardant.core.rule import Rule, SoftmaxRule
from tests.core.small_mixers import Ungrouped, made


def test_half_precision_on_a_device_that_lacks_it(monkeypatch):
    monkeypatch.setattr(checks, "computes_in", lambda device, dtype: dtype != torch.float16)
    layer, x = MultiHead(8, 2).half(), torch.zeros(1, 3, 8, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"x is torch\.float16, which cpu does not compute in: use float32"):
        layer(x)


@pytest.mark.skipif(not checks.computes_in("cpu", torch.bfloat16), reason="no bfloat16 here")
def test_autocast_decides_on_the_type_itself():
    layer, x = MultiHead(8, 2), torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda: regardant.create("sofmax", dim=8, heads=2), "'sofmax'.*softmax"),
        (lambda: made(12, 5), "dim=12 does not divide into heads=5: make it a multiple, or give head_dim"),
        (lambda: made(0, 1), "dim is 0"),
        (lambda: made(12, 0), "heads is 0"),
        (lambda: made(kv_heads=3), "kv_heads=3 does not divide heads=4"),
        (lambda: made(kv_heads=0), "kv_heads=0 does not divide"),
        (lambda: made(position="rotery"), "no position is called 'rotery'; the nearest are rotary"),
        (lambda: made(12, 4, position="rotary"), "head_dim is 3, but rotary positions turn pairs"),
        (lambda: made(position="learned"), "position='learned' needs max_length"),
        (lambda: made(context_dim=5, position="alibi"), "position is Alibi, which relates positions of one"),
        (lambda: made(pattern="window"), r"pattern is 'window', but it is a Pattern, such as Window\(256\)"),
        (lambda: Ungrouped(8, 2, pattern=Window(2)), "takes no pattern: it chooses its own keys"),
        (lambda: Ungrouped(8, 2, kv_heads=1), "Ungrouped shares no keys among heads"),
        (lambda: Ungrouped(8, 2, causal=True, context_dim=8), "Ungrouped has no causal cross-attention"),
        (
            lambda: Ungrouped(8, 2).double()(zeros(1, 3, 8), padding=zeros(1, 3).bool()),
            "Ungrouped takes none",
        ),
        (lambda: Ungrouped(8, 2, causal=True).start(1), "Ungrouped does not decode step by step"),
        (lambda: made()(zeros(2, 12)), r"x has shape \(2, 12\), but it is \[batch, length, width\]"),
        (lambda: made()(zeros(1, 2, 3, 12)), "x has shape"),
        (lambda: made()(zeros(2, 3, 11)), "x has width 11, but this layer was made for 12"),
        (lambda: made()(zeros(2, 0, 12)), "there is no key to attend to: the length is 0"),
        (
            lambda: made()(zeros(2, 3, 12, dtype=torch.float32)),
            "x is torch.float32, but this layer's weights are",
        ),
        (lambda: made(context_dim=5)(zeros(2, 3, 12)), "context is missing, but context_dim=5"),
        (lambda: made(context_dim=5)(zeros(2, 3, 12), zeros(2, 3, 6)), "context has width 6"),
        (lambda: made(context_dim=5)(zeros(2, 3, 12), zeros(1, 3, 5)), "context has 1 samples, but x has 2"),
        (lambda: made(context_dim=5)(zeros(2, 3, 12), zeros(2, 0, 5)), "the length is 0"),
        (
            lambda: made()(zeros(2, 3, 12), padding=zeros(2, 3)),
            r"padding is torch.float64 \[2, 3\], but it is bool",
        ),
        (lambda: made()(zeros(2, 3, 12), padding=zeros(2, 4).bool()), r"padding is torch.bool \[2, 4\]"),
        (
            lambda: made(position="learned", max_length=4)(zeros(1, 5, 12)),
            "max_length=4 positions are learned",
        ),
        (
            lambda: made(pattern=PerHead([Causal()] * 3))(zeros(1, 5, 12)),
            "PerHead has 3 patterns, but there are 4",
        ),
        (lambda: made().start(1), "causal=False: a layer that sees the future cannot decode"),
        (lambda: made(causal=True, context_dim=5).start(1), "context is missing"),
        (lambda: made(causal=True).start(1, padding=zeros(1, 3).bool()), "padding speaks of a context"),
        (lambda: made(causal=True).step(zeros(1, 11), made(causal=True).start(1)), "x_t has width 11"),
        (lambda: made(causal=True).step(zeros(1, 1, 12), made(causal=True).start(1)), "x_t has shape"),
        (lambda: made(causal=True).step(zeros(1, 12), made(causal=True).start(2)), "another batch"),
        (
            lambda: SoftmaxRule()(zeros(1, 3, 4, 5), zeros(1, 2, 4, 5), zeros(1, 2, 4, 5)),
            "must divide those of q",
        ),
        (lambda: Rule().start(None), "Rule does not decode step by step"),
    ],
)
def test_bad_input_is_one_sentence(broken, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        broken()
    assert "\n" not in str(raised.value)
