"""The staircase cache: what is kept how at which age, and the dossier's pitfalls."""

import pytest
import torch

from regardant.core.quantized_rows import on_grid
from regardant.sequence.softmax import Softmax
from regardant.sequence.staircase_cache import StaircaseCache


def layer(seed=0, **own):
    torch.manual_seed(seed)
    return StaircaseCache(16, 2, **({"group": 4, "recent": 8} | own)).double()


def inputs(n, dim=16, seed=1, batch=2):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_every_age_sees_its_grid():
    """A query of group 10: groups 8 and 9 are as they were, 6 and 7 in 8 bits, 2 to 5 in 4, 0 and 1 in 2."""
    made, x = layer(), inputs(44)
    q, k, v = made.project(x)
    sides = []
    for part, group in ((k, 4), (v, None)):
        eight = on_grid(part, 8, group)
        four = on_grid(eight, 4, group)
        two = on_grid(four, 2, group)
        sides.append(torch.cat([two[:, :, :8], four[:, :, 8:24], eight[:, :, 24:32], part[:, :, 32:]], dim=2))
    keys, values = sides
    weights = (q[:, :, 43:] @ keys.mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(made(x)[:, 43:], made.merge(weights @ values, x=x), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("own", [{}, {"recent": 0}, {"bits": (4,)}, {"bits": (8, 2)}, {"kv_heads": 1}])
@pytest.mark.parametrize("prompt", [0, 1, 29, 60])
def test_decoding_is_forward_and_keeps_codes(own, prompt):
    made, x = layer(**own), inputs(70)
    whole, state = made(x), made.start(2)
    if prompt:
        y, state = made.prefill(x[:, :prompt])
        torch.testing.assert_close(y, whole[:, :prompt], rtol=0, atol=1e-12)
    for t in range(prompt, 70):
        y, state = made.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-10)
    inner, group = state.inner, 69 // 4
    down = sum(rows.length for rows in inner.coarse_keys)
    assert down == 4 * made.rule.ends(group)[0] and down + inner.keys.shape[2] == 70
    assert all(rows.codes.dtype == torch.uint8 for rows in (*inner.coarse_keys, *inner.coarse_values))


@torch.no_grad()
def test_what_is_short_enough_is_softmax():
    torch.manual_seed(0)
    plain, x = Softmax(16, 2, causal=True).double(), inputs(12)
    ours = StaircaseCache.from_dense(plain, group=4, recent=8)
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=1e-12)
    longer = inputs(60)
    assert (ours(longer) - plain(longer)).abs().max() > 1e-4


@torch.no_grad()
def test_pitfall_requantising_adds_up_no_errors_because_the_grids_are_nested():
    x = inputs(4000, seed=3)
    by_steps = on_grid(on_grid(on_grid(x, 8, 4), 4, 4), 2, 4)
    torch.testing.assert_close(by_steps, on_grid(x, 2, 4), rtol=0, atol=1e-9)


@torch.no_grad()
def test_mean_bits_count_what_the_state_holds():
    made = layer(recent=0, bits=(4,)).float()
    _, state = made.prefill(inputs(400).float())
    inner = state.inner
    stored = sum(rows.codes.numel() * 8 for rows in (*inner.coarse_keys, *inner.coarse_values))
    stored += sum(
        16 * (rows.step.numel() + rows.low.numel()) for rows in (*inner.coarse_keys, *inner.coarse_values)
    )
    stored += 16 * (inner.keys.numel() + inner.values.numel())
    numbers = 2 * 2 * 2 * 400 * 8
    # The state behind 400 tokens is ready for the one after: its last group has gone down already.
    assert stored / numbers == pytest.approx(made.mean_bits(401) * 401 / 400 - 16 / 400, rel=1e-6)


def test_gradients_pass_through_the_grids():
    made, x = layer(), inputs(40).requires_grad_()
    made(x)[:, -1].sum().backward()
    assert x.grad[:, 0].abs().max() > 0


@pytest.mark.parametrize(
    ("own", "words"),
    [({"group": 0}, "group is 0"), ({"recent": 6}, "recent is 6"), ({"bits": (3,)}, "bits is"),
     ({"bits": ()}, "bits is"), ({"position": "alibi"}, "position is Alibi"),
     ({"causal": False}, "causal=False")],
)  # fmt: skip
def test_bad_input_is_one_sentence(own, words):
    with pytest.raises(ValueError, match=words):
        layer(**own)
