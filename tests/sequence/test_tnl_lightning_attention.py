"""TNL's token mixer, and the layer that it shares with its relatives."""

from math import exp

import pytest
import torch
import torch.nn.functional as F

from regardant.core.decayed_heads import decays
from regardant.core.decayed_linear import decayed_linear
from regardant.sequence.tnl_lightning_attention import TNL

LENGTHS = [1, 2, 63, 64, 65, 131]
VARIANTS = [
    {},
    {"gate": "full", "norm": "srms", "position": "lrpe"},
    {"kv_heads": 2, "position": "lrpe", "bias": True, "layer": 2, "layers": 3},
    {"decay": "linear", "layer": 1, "layers": 4, "head_dim": 5},
]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return TNL(32, 4, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decoded(mixer, x, state=None):
    state, outputs = mixer.start(x.shape[0]) if state is None else state, []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("gate", ["lowrank", "full"])
@pytest.mark.parametrize("norm", ["layernorm", "srms"])
def test_the_layer_is_the_equation_written_token_by_token(gate, norm):
    mixer, x = layer(gate=gate, norm=norm, layer=1, layers=3), inputs(9)
    with torch.no_grad():
        q, k, v = (F.silu(x @ w.weight.T) for w in (mixer.to_q, mixer.to_k, mixer.to_v))
        out = torch.zeros_like(x)
        for h in range(4):
            kept, own = exp(-(2 ** (-2 * (h + 1))) * (0.5 + 1e-5)), slice(8 * h, 8 * h + 8)
            for t in range(9):
                for s in range(t + 1):
                    score = (q[:, t, own] * k[:, s, own]).sum(-1, keepdim=True)
                    out[:, t, own] += kept ** (t - s) * score * v[:, s, own]
        if gate == "lowrank":
            opened = torch.sigmoid(x @ mixer.to_gate[0].weight.T @ mixer.to_gate[1].weight.T)
        else:
            opened = x @ mixer.to_gate.weight.T
        if norm == "layernorm":
            normed = F.layer_norm(out, (32,))
        else:
            normed = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        expected = (normed * opened) @ mixer.to_out.weight.T
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("n", LENGTHS)
def test_parallel_chunked_and_recurrent_are_one(n, config):
    mixer, x = layer(**config), inputs(n)
    with torch.no_grad():
        chunked = mixer(x)
        torch.testing.assert_close(chunked, mixer.reference(x), rtol=0, atol=1e-9)
        torch.testing.assert_close(chunked, decoded(mixer, x)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", VARIANTS)
def test_gradients_equal_those_of_the_parallel_form(config):
    mixer, x = layer(**config), inputs(70).requires_grad_()
    wanted = [x, *mixer.parameters()]
    weight = torch.randn(2, 70, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours = torch.autograd.grad((mixer(x) * weight).sum(), wanted)
    plain = torch.autograd.grad((mixer.reference(x) * weight).sum(), wanted)
    for one, other in zip(ours, plain):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_in_single_precision_the_three_agree_to_four_digits():
    torch.manual_seed(0)
    mixer, x = TNL(64, 4), torch.randn(1, 500, 64)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), mixer.reference(x), rtol=0, atol=1e-4)
        torch.testing.assert_close(mixer(x), decoded(mixer, x)[0], rtol=0, atol=1e-4)


def test_pitfall_the_first_row_of_a_block_has_aged_by_one():
    ones = torch.ones(1, 1, 6, 1, dtype=torch.float64)
    v = torch.tensor([0.0, 0, 1, 0, 0, 0], dtype=torch.float64).view(1, 1, 6, 1)
    rate = torch.tensor([0.5], dtype=torch.float64).log()
    out = decayed_linear(ones, ones, v, rate, block=3)
    expected = torch.tensor([0, 0, 1, 0.5, 0.25, 0.125], dtype=torch.float64)
    torch.testing.assert_close(out.flatten(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [3, 64, 70])
@pytest.mark.parametrize("config", VARIANTS)
def test_pitfall_a_ragged_last_block_ages_the_state_by_its_own_length(n, config):
    mixer, x = layer(**config), inputs(n + 6)
    with torch.no_grad():
        _, state = mixer.prefill(x[:, :n])
        _, stepped = decoded(mixer, x[:, :n])
        torch.testing.assert_close(state.inner.matrix, stepped.inner.matrix, rtol=0, atol=1e-9)
        rest, _ = decoded(mixer, x[:, n:], state)
        torch.testing.assert_close(rest, mixer(x)[:, n:], rtol=0, atol=1e-9)


def test_pitfall_no_negative_power_of_the_decay_is_formed():
    mixer, x = layer(decay="linear", layers=40), inputs(900).float()
    fastest = min(decays("linear", 4, layers=40))
    assert torch.tensor(fastest).pow(-900).isinf()
    y = mixer.float()(x)
    assert y.isfinite().all()
    torch.testing.assert_close(y.double(), mixer.double().reference(x.double()), rtol=0, atol=1e-4)


def test_pitfall_the_norm_holds_what_grows_with_the_length():
    mixer, x = layer(decay="none"), inputs(1, seed=3).expand(2, 4000, 32)
    q, k, v = mixer.project(x)
    heads = mixer.attend(q, k, v, x=x, pattern=mixer.visible(4000, across=False, padding=None))
    torch.testing.assert_close(heads[:, :, 3999], 4000 * heads[:, :, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixer(x)[:, 3999], mixer(x)[:, 1000], rtol=0, atol=1e-3)


def test_a_single_layer_is_no_division_by_zero_and_the_last_hardly_forgets():
    assert decays("alibi", 4, layer=0, layers=1) == pytest.approx(decays("alibi", 4, layer=0, layers=9))
    assert decays("alibi", 4, layer=8, layers=9) == pytest.approx([1.0] * 4, abs=1e-5)


def test_the_state_of_turned_keys_is_twice_as_large_and_does_not_grow():
    plain, turned, x = layer(), layer(position="lrpe"), inputs(200)
    with torch.no_grad():
        sizes = [mixer.prefill(x)[1].nbytes for mixer in (plain, turned)]
        assert sizes == [mixer.start(2).nbytes for mixer in (plain, turned)]
    assert sizes == [2 * 4 * 8 * 8 * 8, 2 * 4 * 16 * 8 * 8]


def test_padding_sends_nothing():
    mixer, x, changed = layer(position="lrpe"), inputs(40), inputs(40)
    padding = torch.rand(2, 40, generator=torch.Generator().manual_seed(0)) > 0.4
    padding[1] = False
    changed[~padding] = 30.0
    a, b = mixer(x, padding=padding), mixer(changed, padding=padding)
    torch.testing.assert_close(a[padding], b[padding], rtol=0, atol=1e-12)
    assert a.isfinite().all()


@pytest.mark.parametrize(
    "config, words",
    [
        ({"layers": 0}, "layers is 0"),
        ({"layer": 3, "layers": 3}, "layer is 3, but layers=3 are counted from 0 to 2"),
        ({"decay": "fast"}, "no decay is called 'fast'"),
        ({"gate": "wide"}, "gate is 'wide'"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"causal": False}, "causal=False"),
        ({"position": "alibi"}, "position is Alibi"),
    ],
)
def test_what_it_cannot_do_it_says(config, words):
    with pytest.raises(ValueError, match=words):
        layer(**config)
