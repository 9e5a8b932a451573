"""RCMHA: filters, distances, and the dossier's pitfalls."""

import math

import pytest
import torch
import torch.nn.functional as F

from regardant.core.short_convolution import ShortConvolution
from regardant.sequence.rcmha import Rcmha
from regardant.sequence.softmax import Softmax


def layer(seed=0, dim=24, heads=3, **own):
    torch.manual_seed(seed)
    made = Rcmha(dim, heads, **({"causal": True, "max_distance": 8} | own)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def inputs(n, dim=24, seed=1, batch=2):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_a_filter_is_a_depthwise_convolution_and_steps(causal, n):
    torch.manual_seed(0)
    made, x = ShortConvolution(6, 3, causal=causal).double(), inputs(n, dim=6)
    weight = made.weight[:, None]
    padded = F.pad(x.mT, (2, 0) if causal else (1, 1))
    whole = F.conv1d(padded, weight, groups=6).mT
    torch.testing.assert_close(made(x), whole, rtol=0, atol=1e-12)
    if causal:
        recent = made.start(x[:, :0])
        for t in range(n):
            y, recent = made.step(x[:, t], recent)
            torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)
            torch.testing.assert_close(recent, made.start(x[:, : t + 1]), rtol=0, atol=0)


@torch.no_grad()
def test_the_layer_by_hand():
    made, x = layer(dim=8, heads=2, max_distance=3), inputs(6, dim=8, batch=1)
    parts = []
    for projection, convolve in zip((made.to_q, made.to_k, made.to_v), made.filters):
        raw = projection(x)[0]
        rows = []
        for t in range(6):
            row = torch.zeros(8, dtype=torch.float64)
            for tap in range(3):
                if t - 2 + tap >= 0:
                    row = row + convolve.weight[:, tap] * raw[t - 2 + tap]
            rows.append(row)
        parts.append(torch.stack(rows))
    q, k, v = parts
    out = torch.zeros(6, 8, dtype=torch.float64)
    rule = made.rule
    for h in range(2):
        own = slice(4 * h, 4 * h + 4)
        for i in range(6):
            logits = []
            for j in range(i + 1):
                r = rule.table[h, 2 - min(i - j, 2)]
                content = (q[i, own] + rule.to_content[h]) @ k[j, own]
                logits.append((content + (q[i, own] + rule.to_distance[h]) @ r) / math.sqrt(4))
            out[i, own] = torch.stack(logits).softmax(0) @ v[: i + 1, own]
    torch.testing.assert_close(made(x)[0], out @ made.to_out.weight.mT, rtol=0, atol=1e-12)


@torch.no_grad()
def test_pitfall_a_causal_filter_does_not_see_ahead_and_a_centred_one_does():
    x = inputs(12)
    changed = x.clone()
    changed[:, 7] += 1.0
    for causal in (True, False):
        convolve = layer(causal=causal).filters[0]
        moved = (convolve(x) - convolve(changed)).abs().amax((0, 2)) > 0
        assert moved.nonzero().flatten().tolist() == ([7, 8, 9] if causal else [6, 7, 8])


@torch.no_grad()
def test_pitfall_every_channel_has_a_filter_of_its_own():
    made, x = layer(), inputs(10)
    assert [part.weight.shape for part in made.filters] == [(24, 3)] * 3
    before = made.project(x)[0]
    made.filters[0].weight[13] += 1.0
    moved = (made.project(x)[0] - before).abs().amax((0, 2)) > 0
    assert moved.nonzero().tolist() == [[1, 5]]


@torch.no_grad()
def test_pitfall_distances_count_back_and_not_ahead():
    """A vector for distance 2 moves the weight of the token two before."""
    made, x = layer(dim=8, heads=1, kernel=None), inputs(9, dim=8)
    q, k, _ = made.project(x)
    one_hot = torch.eye(9, dtype=torch.float64).expand(2, 1, 9, 9)
    made.rule.table.zero_()
    made.rule.to_distance.fill_(1.0)
    made.rule.table[0, made.rule.farthest - 2] = 100.0
    q = torch.zeros_like(q)
    pattern = made.visible(9, across=False, padding=None)
    taken = made.rule(q, k, one_hot, pattern=pattern)[0, 0].argmax(-1)
    assert taken[2:].tolist() == list(range(7))


@torch.no_grad()
def test_pitfall_the_biases_are_added_before_the_scale():
    made, x = layer(kernel=None), inputs(7)
    shifted = layer(kernel=None, bias=True)
    shifted.load_state_dict(made.state_dict(), strict=False)
    for projection in (shifted.to_q, shifted.to_k, shifted.to_v, shifted.to_out):
        projection.bias.zero_()
    shifted.to_q.bias.copy_(
        made.rule.to_content.flatten()
    )  # u as a bias of the queries, in front of the scale
    shifted.rule.to_content.zero_()
    shifted.rule.to_distance.sub_(made.rule.to_content)
    torch.testing.assert_close(shifted(x), made(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_pitfall_values_are_convolved_too():
    made, x = layer(relative=False), inputs(6)
    changed = layer(relative=False)
    changed.filters[2].weight.mul_(2.0)
    torch.testing.assert_close(changed(x), 2 * made(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_all_four_models_are_here():
    torch.manual_seed(0)
    plain, x = Softmax(24, 3, causal=True).double(), inputs(20)
    neither = Rcmha.from_dense(plain, kernel=None, relative=False)
    torch.testing.assert_close(neither(x), plain(x), rtol=0, atol=1e-12)
    for kernel in (None, 3):
        for relative in (False, True):
            made = layer(kernel=kernel, relative=relative)
            names = {name.split(".")[0] for name, _ in made.named_parameters()}
            assert ("filters" in names, "rule" in names) == (kernel is not None, relative)
            torch.testing.assert_close(made(x), made.reference(x), rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 9])
def test_decoding_goes_on_behind_a_prompt_of_any_length(prompt):
    made, x = layer(), inputs(14)
    whole = made(x)
    y, state = made.prefill(x[:, :prompt])
    torch.testing.assert_close(y, whole[:, :prompt], rtol=0, atol=1e-12)
    for t in range(prompt, 14):
        y, state = made.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("own", "words"),
    [({"kernel": 0}, "kernel is 0"), ({"kernel": 2, "causal": False}, "make it odd"),
     ({"max_distance": 0}, "max_distance is 0"), ({"position": "alibi"}, "give relative=False")],
)  # fmt: skip
def test_bad_input_is_one_sentence(own, words):
    with pytest.raises(ValueError, match=words):
        layer(**own)
