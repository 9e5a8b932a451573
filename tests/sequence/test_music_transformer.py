"""Music Transformer's relative attention: values by hand, and the dossier's pitfalls."""

import math

import pytest
import torch

from regardant import create
from regardant.claim.count import peak_bytes
from regardant.core.pattern import Causal, Window
from regardant.sequence.music_transformer import MusicTransformer


def layer(seed=0, dim=24, heads=3, **own):
    torch.manual_seed(seed)
    return MusicTransformer(dim, heads, **({"causal": True, "max_distance": 64} | own)).double()


def inputs(n, dim=24, seed=1, batch=2):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(made, x):
    """Pair by pair: logits, softmax, values."""
    q, k, v = made.project(x)
    batch, heads, n, width = q.shape
    out = torch.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            for i in range(n):
                keys = range(i + 1 if made.causal else n)
                farthest = made.rule.farthest
                logits = []
                for j in keys:
                    far = max(-farthest, min(farthest, j - i))
                    vector = made.rule.table[h, far + farthest]
                    logits.append((q[b, h, i] @ (k[b, h, j] + vector)) / math.sqrt(width))
                out[b, h, i] = torch.stack(logits).softmax(0) @ v[b, h, : len(keys)]
    return made.merge(out, x=x)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("max_distance", [1, 4, 64])
def test_the_layer_is_the_equation_also_beyond_the_farthest_distance(causal, max_distance):
    made, x = layer(causal=causal, max_distance=max_distance), inputs(9)
    torch.testing.assert_close(made(x), by_hand(made, x), rtol=0, atol=1e-12)


@torch.no_grad()
def weights(made, x):
    q, k, _ = made.project(x)
    eye = torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), made.heads, -1, -1)
    return made.rule(q, k, eye, pattern=Causal() if made.causal else None)


@torch.no_grad()
@pytest.mark.parametrize("distance", [0, 1, 5])
def test_pitfall_one_vector_is_for_one_distance_counted_back_from_the_last_row(distance):
    made, x = layer(heads=1, dim=8), inputs(12, dim=8)
    before = weights(made, x)[0, 0].clamp(min=1e-300).log()
    made.rule.table[0, -1 - distance] += 3.0
    after = weights(made, x)[0, 0].clamp(min=1e-300).log()
    moved = after - before
    # A row's other keys move together, by its new normaliser; the one at the distance moves apart from them.
    for i in range(2, 12):
        others = [j for j in range(i + 1) if i - j != distance]
        assert moved[i, others].max() - moved[i, others].min() < 1e-9
        if distance <= i:
            assert abs(moved[i, i - distance] - moved[i, others[0]]) > 1e-3


@torch.no_grad()
def test_pitfall_nothing_of_another_row_is_read_at_the_edges():
    made, x = layer(max_distance=300), inputs(300)
    changed = x.clone()
    changed[:, 171] += 1.0
    apart = (made(x) - made(changed)).abs().amax((0, 2))
    assert apart[:171].max() == 0 and apart[171] > 0


@torch.no_grad()
def test_pitfall_the_mask_comes_after_the_relative_term():
    made, x = layer(), inputs(10)
    made.rule.table.mul_(1e4)
    assert weights(made, x).triu(1).abs().max() == 0
    assert made(x).isfinite().all()


@torch.no_grad()
def test_pitfall_the_scale_covers_both_terms():
    made, x = layer(), inputs(10)
    halved = layer(scale=made.head_dim**-0.5 / 2)
    halved.load_state_dict(made.state_dict())
    doubled = halved.to_q.weight.clone()
    halved.to_q.weight.copy_(2 * doubled)
    torch.testing.assert_close(halved(x), made(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_cached_decoding_reads_the_right_distances_in_a_window_too():
    for pattern in (None, Window(6)):
        made, x = layer(pattern=pattern, max_distance=10), inputs(30)
        whole = made(x)
        y, state = made.prefill(x[:, :13])
        torch.testing.assert_close(y, whole[:, :13], rtol=0, atol=1e-12)
        for t in range(13, 30):
            y, state = made.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)


def test_memory_over_softmax_grows_with_the_length_and_no_faster():
    extra = []
    for n in (1024, 2048):
        held = []
        for name, own in (("music-transformer", {"max_distance": n}), ("softmax", {})):
            torch.manual_seed(0)
            made, x = create(name, dim=16, heads=2, causal=True, **own), torch.randn(1, n, 16)
            with torch.no_grad():
                held.append(peak_bytes(lambda made=made, x=x: made(x)))
        extra.append(held[0] - held[1])
    assert math.log2(extra[1] / extra[0]) < 1.15


def test_one_bad_distance_and_one_bad_position_are_said():
    with pytest.raises(ValueError, match="max_distance is 0"):
        layer(max_distance=0)
    with pytest.raises(ValueError, match="position is Alibi"):
        layer(position="alibi")


def test_explain_knows_of_the_relative_term():
    assert "bias learns" not in str(create("softmax", dim=24, heads=3, causal=True).explain(4096))
    assert layer().explain(4096).name == "dense"
