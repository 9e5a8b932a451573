"""Multi-head layers: every use against the equation written out, and decoding."""

import pytest
import torch

from regardant.core.mixer import MultiHead
from regardant.core.pattern import Causal, Document, PerHead, Sink, Window
from regardant.core.rule import Rule, SoftmaxRule
from regardant.core.supports import Supports
from tests.core.small_mixers import Ungrouped, made, tokens


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def written_out(layer, x, context=None, mask=None):
    """softmax(q kᵀ / √d) v, head by head, with the projections taken apart; `mask` [b, h, m, n]."""
    source, d = x if context is None else context, layer.head_dim
    q, k, v = layer.to_q(x), layer.to_k(source), layer.to_v(source)
    heads = []
    for head in range(layer.heads):
        shared = head * layer.kv_heads // layer.heads
        own, theirs = slice(head * d, (head + 1) * d), slice(shared * d, (shared + 1) * d)
        logits = q[..., own] @ k[..., theirs].mT / d**0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, head], float("-inf"))
        weights = logits.softmax(-1).nan_to_num()
        heads.append(weights @ v[..., theirs])
    return layer.to_out(torch.cat(heads, -1))


def full_mask(b, h, m, n):
    return torch.ones(b, h, m, n, dtype=torch.bool)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [None, 2, 1])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_self_attention_is_the_equation(causal, kv_heads, length):
    layer, x = made(causal=causal, kv_heads=kv_heads, bias=True), tokens(2, length, 12)
    mask = full_mask(2, 4, length, length)
    mask = mask.tril() if causal else mask
    close(layer(x), written_out(layer, x, mask=mask))
    close(layer.reference(x), layer(x))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_cross_attention_sees_the_context_whole(causal, kv_heads):
    layer = made(causal=causal, context_dim=5, kv_heads=kv_heads)
    x, context = tokens(2, 7, 12), tokens(2, 4, 5, seed=2)
    close(layer(x, context), written_out(layer, x, context))
    close(layer.reference(x, context), layer(x, context))


def test_a_self_attention_layer_takes_a_context_of_its_own_width():
    layer, x, context = made(), tokens(2, 3, 12), tokens(2, 5, 12, seed=2)
    close(layer(x, context), written_out(layer, x, context))


@pytest.mark.parametrize("causal", [False, True])
def test_padding_hides_keys_and_rows_without_keys_are_zero(causal):
    layer, x = made(causal=causal), tokens(3, 6, 12)
    padding = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]).bool()
    mask = full_mask(3, 4, 6, 6) & padding[:, None, None]
    mask = mask.tril() if causal else mask
    y = layer(x, padding=padding)
    close(y, written_out(layer, x, mask=mask))
    close(layer.reference(x, padding=padding), y)
    assert (y[2] == 0).all()
    if causal:
        assert (y[1, :2] == 0).all()
    changed = x.clone()
    changed[~padding] = 1e3
    close(layer(changed, padding=padding)[padding], y[padding])


def test_padding_of_a_context():
    layer, x, context = made(context_dim=5), tokens(2, 3, 12), tokens(2, 4, 5, seed=2)
    padding = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 1]]).bool()
    mask = full_mask(2, 4, 3, 4) & padding[:, None, None]
    close(layer(x, context, padding=padding), written_out(layer, x, context, mask))


PATTERNS = [
    Window(3),
    Sink(2) | Window(2),
    Document(torch.arange(15) // 4),
    PerHead([Window(1), Window(3), Sink(1), Causal()]),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("causal", [False, True])
def test_patterns_come_on_top_of_causal(pattern, causal):
    layer, x = made(pattern=pattern, causal=causal), tokens(2, 15, 12)
    mask = full_mask(2, 4, 15, 15) & pattern.dense(15, heads=4)
    mask = mask.tril() if causal else mask
    close(layer(x), written_out(layer, x, mask=mask))


def test_grouped_heads_equal_repeated_ones():
    few, many = made(kv_heads=2, causal=True), made(causal=True)
    weights = few.state_dict()
    for name in ("to_k.weight", "to_v.weight"):
        weights[name] = weights[name].unflatten(0, (2, 3)).repeat_interleave(2, 0).flatten(0, 1)
    many.load_state_dict(weights)
    x = tokens(2, 9, 12)
    close(few(x), many(x))


def test_scale_and_width_of_heads_can_be_given():
    layer, x = made(head_dim=5, scale=0.1), tokens(1, 4, 12)
    assert layer.to_q.weight.shape == (20, 12) and layer.to_out.weight.shape == (12, 20)
    with torch.no_grad():
        layer.to_q.weight.mul_(0.1 * 5**0.5)
    same = written_out(layer, x)
    with torch.no_grad():
        layer.to_q.weight.div_(0.1 * 5**0.5)
    close(layer(x), same)


@pytest.mark.parametrize("position", ["none", "rotary", "alibi", "relative", "learned"])
@pytest.mark.parametrize("pattern", [None, Window(4), Sink(2) | Window(3)], ids=str)
def test_steps_equal_forward_from_the_start_and_from_a_prompt(position, pattern):
    own = {"max_length": 13} if position == "learned" else {}
    layer = made(8, 2, causal=True, kv_heads=1, position=position, pattern=pattern, **own)
    x = tokens(2, 13, 8)
    y = layer(x)
    close(layer.reference(x), y)
    for begin in (0, 1, 7):
        prompt, state = layer.prefill(x[:, :begin]) if begin else (x[:, :0], layer.start(2))
        outs = [prompt]
        for at in range(begin, 13):
            out, state = layer.step(x[:, at], state)
            outs.append(out[:, None])
        assert state.length == 13
        close(torch.cat(outs, 1), y)


def test_steps_across_a_padded_context():
    layer = made(causal=True, context_dim=5)
    x, context = tokens(2, 6, 12), tokens(2, 4, 5, seed=2)
    padding = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 1]]).bool()
    y, state = layer(x, context, padding=padding), layer.start(2, context=context, padding=padding)
    for at in range(6):
        out, state = layer.step(x[:, at], state)
        close(out, y[:, at])


@torch.no_grad()
def test_a_beam_forks_the_state():
    layer, x = made(causal=True), tokens(2, 5, 12)
    _, state = layer.prefill(x)
    pick = torch.tensor([1, 1, 0])
    after = tokens(3, 12, seed=5)
    left, _ = layer.step(after, state.select(pick))
    again, _ = layer.step(after, state.select(pick))
    close(left, again)
    whole = torch.cat([x[pick], after[:, None]], 1)
    close(left, layer(whole)[:, -1])


@torch.no_grad()
def test_state_of_a_window_stops_growing():
    layer, sizes = made(causal=True, pattern=Sink(2) | Window(3)), []
    state = layer.start(1)
    for at in range(20):
        _, state = layer.step(tokens(1, 12, seed=at), state)
        sizes.append(state.nbytes)
    assert len(set(sizes[5:])) == 1


def test_gradients_through_steps_equal_those_of_forward():
    layer, x = made(causal=True), tokens(1, 5, 12)
    parameters = list(layer.parameters())
    expected = torch.autograd.grad(layer(x).square().sum(), parameters)
    state, total = layer.start(1), 0
    for at in range(5):
        out, state = layer.step(x[:, at], state)
        total = total + out.square().sum()
    for stepped, whole in zip(torch.autograd.grad(total, parameters), expected):
        close(stepped, whole)


@pytest.mark.parametrize("position", ["rotary", "relative", "learned"])
def test_from_dense_takes_over_weights_and_configuration(position):
    own = {"max_length": 9} if position == "learned" else {}
    dense = made(8, 2, causal=True, kv_heads=1, position=position, bias=True, pattern=Window(3), **own)
    copy, x = MultiHead.from_dense(dense), tokens(2, 9, 8)
    close(copy(x), dense(x))
    assert copy.to_q.weight.dtype == torch.float64
    mine, theirs = ({p.data_ptr() for p in layer.parameters()} for layer in (copy, dense))
    assert not mine & theirs
    close(MultiHead.from_dense(dense, pattern=None)(x), MultiHead.from_dense(dense, pattern=Window(99))(x))


def test_from_dense_refuses_heads_that_cannot_be_shared():
    assert torch.equal(Ungrouped.from_dense(made()).to_k.weight, made().to_k.weight)
    with pytest.raises(ValueError, match="Ungrouped does not share keys among heads, but the layer does"):
        Ungrouped.from_dense(made(kv_heads=2))


def test_a_system_overrides_just_the_step_that_it_changes():
    class Doubled(MultiHead):
        def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
            return 2 * super().attend(q, k, v, x=x, pattern=pattern)

    plain, doubled, x = made(), Doubled(12, 4).double(), tokens(1, 5, 12)
    doubled.load_state_dict(plain.state_dict())
    close(doubled(x), 2 * plain(x))


def test_explain_names_the_plan():
    assert made().explain(4096).name == "fused"
    assert made(causal=True).explain(4096).name == "fused"
    banded = made(causal=True, pattern=Window(64)).explain(16384)
    assert banded.name == "banded" and banded.pairs < 16384 * 64 * 3
    assert "banded" in str(banded)

    class Other(Rule):
        pass

    with pytest.raises(ValueError, match="Other is no softmax under a pattern: it has no plan"):
        made(rule=Other()).explain(64)


@pytest.mark.parametrize("causal", [False, True])
def test_a_mixing_matrix_is_the_softmax_of_the_logits_and_shared_keys_have_one_a_query_head(causal):
    layer = MultiHead(16, 4, causal=causal, kv_heads=2).double()
    x = torch.randn(1, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = layer.project(x)
    matrix = layer.mixing_matrix(x)
    logits = q[0, 3] @ k[0, 1].mT / 2
    if causal:
        logits = logits.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(matrix[0, 3], logits.softmax(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.mix(matrix, x), layer(x), rtol=0, atol=1e-12)
    even = torch.full((1, 4, 5, 5), 0.2, dtype=torch.float64)
    mean = v.mean(2, keepdim=True).repeat_interleave(2, dim=1).expand(-1, -1, 5, -1)
    torch.testing.assert_close(layer.mix(even, x), layer.merge(mean, x=x), rtol=0, atol=1e-12)


def test_what_is_not_linear_in_its_values_has_no_mixing_matrix():
    class Squared(SoftmaxRule):
        supports = Supports(linear_in_values=False)

    layer = MultiHead(16, 4, rule=Squared())
    with pytest.raises(
        ValueError, match="MultiHead has no mixing matrix: it is not a matrix times its values"
    ):
        layer.mixing_matrix(torch.zeros(1, 3, 16))
