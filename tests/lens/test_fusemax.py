"""FuseMax: cascades, the passes that they need, what calls really do, and the model of an accelerator."""

from dataclasses import fields

import pytest
import torch

from regardant.core.rule import SoftmaxRule
from regardant.lens.accelerator import Accelerator, Cycles
from regardant.lens.attention_cascades import attention_cascade
from regardant.lens.cascade import Cascade
from regardant.lens.fusemax import OTHERS, SOFTMAX, PassAnalysis
from regardant.lens.traced import trace

LOGITS = "QK[m,p] = sum[e](Q[e,p] * K[e,m])\n"


def inputs(tiles: bool = False):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((4, 5), (4, 24), (3, 24))
    )
    known = v @ (q.T @ k).softmax(-1).T
    if tiles:
        k, v = k.unflatten(1, (6, 4)), v.unflatten(1, (6, 4))
    return {"Q": q, "K": k, "V": v}, known


@pytest.mark.parametrize("name", SOFTMAX | OTHERS)
def test_the_passes_of_each_cascade(name):
    assert attention_cascade(name).passes("m") == (SOFTMAX | OTHERS)[name]


def test_tiles_are_traversed_again_where_their_maxima_are_merged():
    assert {name: attention_cascade(name).passes("m1") for name in ("2-pass", "1-pass", "split")} == {
        "2-pass": 3,
        "1-pass": 1,
        "split": 2,
    }


def test_what_is_no_softmax_is_its_equation():
    given, _ = inputs()
    logits = given["Q"].T @ given["K"]
    found = attention_cascade("sigmoid").run(given)["AV"]
    torch.testing.assert_close(found, given["V"] @ logits.sigmoid().T, rtol=0, atol=1e-12)
    found = attention_cascade("linear").run(given)["AV"]
    torch.testing.assert_close(found, given["V"] @ logits.T, rtol=0, atol=1e-12)
    shares = torch.logaddexp(2 * logits, torch.zeros(())).T
    shares = shares / shares.sum(0)
    sharp = (24 * shares - 1).relu() ** 3
    settings = dict(sharpness=2.0, keys=24.0, offset=1.0, power=3.0)
    found = attention_cascade("softplus re-weighted").run(given, **settings)["AV"]
    torch.testing.assert_close(found, given["V"] @ (sharp / sharp.sum(0)), rtol=0, atol=1e-9)
    given, _ = inputs(tiles=True)
    clipped = (1.1 * logits.softmax(-1) - 0.1).clamp(0, 1).T
    found = attention_cascade("clipped").run(given, zeta=1.0, gamma=-0.1)["AV"]
    torch.testing.assert_close(found, given["V"].flatten(1) @ clipped, rtol=0, atol=1e-12)


def test_pitfall_passes_belong_to_the_algebra_not_to_the_loops():
    fused = """
        GM[p] = max[m](sum[e](Q[e,p] * K[e,m]))
        SD[p] = sum[m](exp(sum[e](Q[e,p] * K[e,m]) - GM[p]))
        AV[f,p] = sum[m](exp(sum[e](Q[e,p] * K[e,m]) - GM[p]) / SD[p] * V[f,m])
    """
    assert Cascade.read(fused).passes("m") == 3
    given, known = inputs()
    torch.testing.assert_close(Cascade.read(fused).run(given)["AV"], known, rtol=0, atol=1e-12)
    tiled = """
        QK[m1,m0,p] = sum[e](Q[e,p] * K[e,m1,m0])
        GM[p] = max[m1,m0](QK[m1,m0,p])
        SN[m1,m0,p] = exp(QK[m1,m0,p] - GM[p])
        SD[p] = sum[m1,m0](SN[m1,m0,p])
        AV[f,p] = sum[m1,m0](SN[m1,m0,p] / SD[p] * V[f,m1,m0])
    """
    assert Cascade.read(tiled, tiles={"m": ("m1", "m0")}).passes("m") == 3


def test_pitfall_the_first_tile_starts_from_nothing():
    given, _ = inputs(tiles=True)
    values = attention_cascade("1-pass").run(given)
    assert torch.equal(values["PRM"][0], torch.zeros(5, dtype=torch.float64))
    assert torch.equal(values["RM"][0], torch.full((5,), -torch.inf, dtype=torch.float64))
    assert all(value.isfinite().all() for name, value in values.items() if name != "RM")
    # A tile that nobody sees, right at the start: no NaN from −∞ − (−∞).
    hidden = "QK[m1,m0,p] = sum[e](Q[e,p] * K[e,m1,m0]) + B[m1,m0]"
    text = "\n".join(line.text for line in attention_cascade("1-pass").lines)
    text = text.replace("QK[m1,m0,p] = sum[e](Q[e,p] * K[e,m1,m0])", hidden)
    bias = torch.zeros(6, 4, dtype=torch.float64)
    bias[0] = -torch.inf
    found = Cascade.read(text, tiles={"m": ("m1", "m0")}).run(given | {"B": bias})["AV"]
    seen = (given["Q"].T @ given["K"].flatten(1) + bias.flatten()).softmax(-1)
    torch.testing.assert_close(found, given["V"].flatten(1) @ seen.T, rtol=0, atol=1e-12)


def test_pitfall_one_pass_does_more_arithmetic_and_keeps_less():
    sizes = PassAnalysis().sizes(4096)
    once, thrice = (attention_cascade(name) for name in ("1-pass", "3-pass"))
    more = once.operations(sizes) - thrice.operations(sizes)
    assert (more["exp"], more["subtract"]) == (32, 32)
    assert more["multiply"] == 32 * (64 + 1)
    assert once.operations(sizes)["divide"] == 64
    assert thrice.operations(sizes)["divide"] == 4096
    kept = [sum(each.footprint(sizes, "m").values()) for each in (once, thrice)]
    assert kept == [3 * 128 + 5 + 3 * 64 - 128, 2 * 4096 + 3 + 64]


def test_pitfall_no_energy_is_told():
    assert {each.name for each in fields(Cycles)} == {"array", "vector", "memory", "traffic"}


def test_what_is_kept_by_hand():
    sizes = dict(e=2, f=3, p=5, m=8)
    kept = attention_cascade("3-pass").footprint(sizes, "m")
    assert kept == {"QK": 40, "GM": 5, "SN": 40, "SD": 5, "A": 5, "AV": 15}


def test_operations_by_hand():
    count = Cascade.read("GM[p] = max[m](exp(X[m,p]) - Y[p])").operations({"m": 3, "p": 2})
    assert count == {"exp": 6, "subtract": 6, "max": 4}


def test_a_running_sum_without_tiles():
    text = "S[0] = 0\nS[m+1] = S[m] * d + X[m]\nY[m] = S[m+1]\nE[m] = X[m] / S[M]"
    values = Cascade.read(text).run({"X": torch.tensor([1.0, 2.0, 4.0])}, d=0.5)
    assert values["S"].tolist() == [0.0, 1.0, 2.5, 5.25]
    assert values["Y"].tolist() == [1.0, 2.5, 5.25]
    torch.testing.assert_close(values["E"], torch.tensor([1.0, 2.0, 4.0]) / 5.25)
    assert Cascade.read(text).passes("m") == 2


@pytest.mark.parametrize(
    ("call", "passes", "grows"),
    [
        (SoftmaxRule().reference, 3, True),
        (torch.nn.functional.scaled_dot_product_attention, 1, False),
        (lambda q, k, v: q @ (k.transpose(-1, -2) @ v), 1, False),
        (lambda q, k, v: (q @ k.transpose(-1, -2)).sigmoid() @ v, 1, True),
        (lambda q, k, v: (q @ k.transpose(-1, -2)).exp() @ v, 1, True),
        (lambda q, k, v: (q @ k.transpose(-1, -2)).log_softmax(-1).exp() @ v, 3, True),
    ],
)
def test_what_a_call_really_does(call, passes, grows):
    found = PassAnalysis()(call)
    assert (found.passes, found.grows) == (passes, grows)


def test_the_keys_are_read_as_often_as_the_call_says():
    q, k, v = torch.randn(1, 1, 7, 4), torch.randn(1, 1, 11, 4), torch.randn(1, 1, 11, 4)
    once = trace(lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-1) @ v, q, k, v)
    twice = trace(lambda q, k, v: ((q @ k.mT).exp() @ v) / (q @ k.mT).exp().sum(-1, keepdim=True), q, k, v)
    assert (once.reads, twice.reads) == (1.0, 2.0)
    # Logits and weights at once.
    assert once.kept == 2 * 7 * 11


def test_the_accelerator_by_hand():
    found = Accelerator().cost("fusemax", 1024, head_dim=64)
    pairs, tiles = 1024**2, 4
    assert found.array == pytest.approx((64 + 1 + 7 + 1 + 64) * pairs / 256**2, rel=2e-3)
    # Six multiply-adds and a difference, two rescalings of sums, two of vectors, at the end a division.
    vector = tiles * 1024 * (1 + 7 + 2 + 2 * 64) + 1024 * 64
    assert found.vector == vector / 256
    assert found.traffic == 4 * 1024 * 64 * 2
    flat = Accelerator().cost("flat", 1024)
    assert flat.array == 2 * 64 * pairs / 256**2
    assert flat.vector == pytest.approx(4 * pairs / 256, rel=1e-3)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: Cascade.read(""), "text holds no Einsum"),
        (lambda: Cascade.read("GM[p] == 3"), "is no Einsum: write it as"),
        (lambda: Cascade.read("GM = 3"), "is no Einsum: write it as"),
        (lambda: Cascade.read("GM[p] = X[m,p] * 2"), r"loses m: reduce it or put it on the left"),
        (lambda: Cascade.read("GM[p] = tanh(X[p])"), "calls tanh, but a cascade knows exp,"),
        (lambda: Cascade.read("A[p] = B[p] + 1\nB[p] = 2 * X[p]"), "uses B, which only a later line makes"),
        (lambda: Cascade.read(LOGITS).passes("n"), "rank is 'n', but this cascade runs over e, m, p"),
        (lambda: Cascade.read(LOGITS).run({"Q": torch.zeros(2, 3)}), "tensors has no 'K'"),
        (
            lambda: Cascade.read(LOGITS).run({"Q": torch.zeros(2, 3), "K": torch.zeros(4, 3)}),
            "K has 4 along e, but others have 2",
        ),
        (lambda: Cascade.read(LOGITS).run({"Q": torch.zeros(2), "K": torch.zeros(4, 3)}), "Q has 1 axes"),
        (lambda: Cascade.read("A[p] = X[p] * c").run({"X": torch.zeros(2)}), "no scalar 'c' is given"),
        (lambda: attention_cascade("1-pas"), "no cascade is called '1-pas'; the nearest are 1-pass"),
        (lambda: PassAnalysis()(3), "attention is a int, not a cascade or a call"),
        (lambda: PassAnalysis(keys=(100, 200)), r"keys is \(100, 200\), but it is a smaller"),
        (lambda: Accelerator().cost("tpu", 1024), "no mapping is called 'tpu'"),
        (lambda: Accelerator().cost("flat", 1000), "length is 1000, but it comes in tiles of 256"),
        (lambda: Accelerator(buffer=1000).cost("fusemax", 1024), "buffer is 1000 bytes"),
        (
            lambda: trace(lambda q, k, v: q, *(torch.zeros(1, 1, 4, 4),) * 3),
            "k holds 4 keys, but other lengths",
        ),
    ],
)
def test_bad_input_gets_one_sentence(act, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        act()
    assert "\n" not in str(raised.value)
