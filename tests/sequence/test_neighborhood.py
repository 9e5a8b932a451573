"""Neighbourhoods on sequences: NATTEN's windows, the residue classes of a dilation, decoding."""

import pytest
import torch

from regardant.core.pattern import Document
from regardant.sequence.neighborhood import NeighborhoodAttention1d


def made(dim=8, heads=2, *, seed=0, **own):
    torch.manual_seed(seed)
    return NeighborhoodAttention1d(dim, heads, **own).double()


def tokens(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def neighbours(i, n, kernel, dilation, causal):
    """The definition, for one query."""
    residue, place = i % dilation, i // dilation
    members = [j for j in range(n) if j % dilation == residue]
    if causal:
        return members[max(0, place - kernel + 1) : place + 1]
    start = min(max(place - (kernel - 1) // 2, 0), max(len(members) - kernel, 0))
    return members[start : start + kernel]


def by_loop(layer, x, *, kernel, dilation=1, causal=False, padding=None):
    q, k, v = layer.project(x)
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = neighbours(i, q.shape[2], kernel, dilation, causal)
                seen = [j for j in seen if padding is None or padding[b, j]]
                if not seen:
                    continue
                logits = k[b, h, seen] @ q[b, h, i] / q.shape[-1] ** 0.5
                if layer.rule.offsets is not None:
                    apart = [j // dilation - i // dilation + kernel - 1 for j in seen]
                    logits = logits + layer.rule.offsets.table[h, apart]
                out[b, h, i] = logits.softmax(0) @ v[b, h, seen]
    return layer.merge(out, x=x)


CASES = [
    (kernel, dilation, causal) for kernel in (1, 3, 5) for dilation in (1, 2, 3) for causal in (False, True)
]


@pytest.mark.parametrize(("kernel", "dilation", "causal"), CASES)
@pytest.mark.parametrize("length", [1, 2, 7, 17, 31])
def test_forward_and_reference_are_the_definition(kernel, dilation, causal, length):
    own = {"kernel": kernel, "dilation": dilation, "causal": causal}
    layer, x = made(relative_bias=True, **own), tokens(2, length, 8)
    expected = by_loop(layer, x, **own)
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.reference(x), expected, rtol=1e-9, atol=1e-9)
    padding = torch.rand(2, length, generator=torch.Generator().manual_seed(2)) < 0.6
    expected = by_loop(layer, x, padding=padding, **own)
    torch.testing.assert_close(layer(x, padding=padding), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.reference(x, padding=padding), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kernel", "dilation", "causal"), [(7, 1, False), (7, 3, True), (4, 2, False)])
@pytest.mark.parametrize("relative_bias", [False, True])
def test_long_sequences_with_gradients(kernel, dilation, causal, relative_bias):
    """Long enough that tiles are cut, and not a multiple of anything."""
    layer = made(kernel=kernel, dilation=dilation, causal=causal, relative_bias=relative_bias, kv_heads=1)
    x, far, results = tokens(1, 1021, 8), tokens(1, 1021, 8, seed=2), []
    for run in (layer, layer.reference):
        probe = x.clone().requires_grad_()
        y = run(probe)
        results.append([y, *torch.autograd.grad((y * far).sum(), [probe, *layer.parameters()])])
    for fast, plain in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_border_shifts_the_window_instead_of_shrinking_it():
    layer = made(dim=2, heads=1, kernel=5)
    with torch.no_grad():
        layer.to_q.weight.zero_()
        layer.to_v.weight.copy_(torch.eye(2))
        layer.to_out.weight.copy_(torch.eye(2))
    x = tokens(1, 9, 2)
    y = layer(x)[0]
    for i, start in enumerate([0, 0, 0, 1, 2, 3, 4, 4, 4]):
        torch.testing.assert_close(y[i], x[0, start : start + 5].mean(0), rtol=1e-12, atol=1e-12)


def test_dilation_works_inside_the_residue_class_and_not_on_a_clamped_start():
    """At the left border with dilation 2 an odd position sees odd positions only."""
    pattern = made(kernel=3, dilation=2).visible(8, across=False, padding=None)
    assert pattern.dense(8)[1].nonzero().flatten().tolist() == [1, 3, 5]
    assert pattern.dense(8)[6].nonzero().flatten().tolist() == [2, 4, 6]


def test_residue_classes_of_different_length():
    pattern = made(kernel=3, dilation=3).visible(10, across=False, padding=None)
    seen = pattern.dense(10)
    assert seen[9].nonzero().flatten().tolist() == [3, 6, 9]
    assert seen[8].nonzero().flatten().tolist() == [2, 5, 8]
    assert (seen.sum(1) == 3).all()


def test_causal_does_not_shift():
    pattern = made(kernel=3, causal=True).visible(6, across=False, padding=None)
    assert pattern.dense(6).sum(1).tolist() == [1, 2, 3, 3, 3, 3]
    assert not pattern.dense(6).triu(1).any()


def test_who_sees_me_is_not_whom_i_see_near_borders():
    seen = made(kernel=5).visible(12, across=False, padding=None).dense(12)
    assert not torch.equal(seen, seen.T)
    layer, x = made(kernel=5), tokens(1, 12, 8).requires_grad_()
    y = layer(x)
    reached = [
        torch.autograd.grad(y[0, i].sum(), x, retain_graph=True)[0][0].abs().sum(-1) > 0 for i in range(12)
    ]
    assert torch.equal(torch.stack(reached), seen)


def test_whole_kernel_is_full_attention_and_kernel_one_passes_values_through():
    from regardant.core.mixer import MultiHead

    x = tokens(2, 7, 8)
    whole, one, full = made(kernel=7), made(kernel=1), MultiHead(8, 2).double()
    full.load_state_dict(whole.state_dict())
    torch.testing.assert_close(whole(x), full(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one(x), one.to_out(one.to_v(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("position", ["none", "rotary", "alibi", "relative"])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (4, 1), (3, 3)])
def test_steps_equal_forward_and_go_on_from_a_prompt(position, kernel, dilation):
    layer = made(
        kernel=kernel, dilation=dilation, causal=True, position=position, kv_heads=1, relative_bias=True
    )
    x = tokens(2, 23, 8)
    y = layer(x)
    torch.testing.assert_close(y, layer.reference(x), rtol=1e-9, atol=1e-9)
    for begin in (0, 1, 11):
        prompt, state = layer.prefill(x[:, :begin]) if begin else (x[:, :0], layer.start(2))
        outs = [prompt]
        for at in range(begin, 23):
            out, state = layer.step(x[:, at], state)
            outs.append(out[:, None])
        torch.testing.assert_close(torch.cat(outs, 1), y, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_state_stops_growing_when_the_window_is_full():
    layer = made(kernel=4, dilation=3, causal=True)
    state, sizes = layer.start(1), []
    for at in range(60):
        _, state = layer.step(tokens(1, 8, seed=at), state)
        sizes.append(state.nbytes)
    row = 2 * 8 * 8  # keys and values, 8 channels, 8 bytes each
    assert sizes[0] == row
    assert set(sizes[9:]) == {10 * row}


def test_another_pattern_on_top():
    layer = made(kernel=5, dilation=2, pattern=Document(torch.arange(40) // 7))
    x = tokens(1, 40, 8)
    torch.testing.assert_close(layer(x), layer.reference(x), rtol=1e-9, atol=1e-9)
    moved = x.clone()
    moved[:, 7:14] += 1
    torch.testing.assert_close(layer(moved)[:, :7], layer(x)[:, :7], rtol=1e-12, atol=1e-12)


def test_pairs_are_linear_in_length_and_do_not_grow_with_dilation():
    def pairs(length, **own):
        return made(kernel=31, **own).explain(length).pairs

    for causal in (False, True):
        assert pairs(32768, causal=causal) < 2.1 * pairs(16384, causal=causal)
        assert pairs(16384, dilation=8, causal=causal) < 1.1 * pairs(16384, causal=causal)
    assert made(kernel=31).explain(16384).name == "banded"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: made(kernel=0), "kernel is 0"),
        (lambda: made(dilation=0), "dilation is 0"),
        (lambda: made(context_dim=8), "has no cross"),
        (lambda: made()(tokens(1, 4, 8), tokens(1, 4, 8)), "has no use for it"),
        (lambda: made(causal=False).start(1), "causal=False"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("own", [{"kernel": 5}, {"kernel": 7, "dilation": 3}, {"kernel": 4, "causal": True}])
@pytest.mark.parametrize("pattern", [None, Document(torch.arange(4096) // 7)])
def test_the_unfused_form_is_the_fused_one_with_padding_and_another_pattern(own, pattern):
    fused, unfused = (made(kv_heads=1, pattern=pattern, form=form, **own) for form in ("fused", "unfused"))
    x, real = tokens(2, 40, 8), torch.rand(2, 40, generator=torch.Generator().manual_seed(2)) < 0.7
    real[1] = False
    for padding in (None, real):
        torch.testing.assert_close(
            unfused(x, padding=padding), fused(x, padding=padding), rtol=0, atol=1e-9
        )  # fmt: skip


def test_the_unfused_form_has_no_bias_by_position():
    with pytest.raises(ValueError, match="position is Alibi"):
        made(kernel=5, form="unfused", position="alibi")
    with pytest.raises(ValueError, match=r"natten (is not|knows)"):
        made(kernel=5, form="natten")(tokens(1, 9, 8), padding=torch.ones(1, 9, dtype=torch.bool))
