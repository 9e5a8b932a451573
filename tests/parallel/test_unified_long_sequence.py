"""Distributed attention by rows and by heads, and the ring that it shares with ring attention."""

import pytest
import torch

from regardant import create
from regardant.core.pattern import Causal
from regardant.core.plan import attend_dense
from regardant.parallel.processes import on_ranks
from tests.parallel import on_a_rank


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_outputs_and_gradients_are_those_of_one_process(ranks):
    q, k, v, grad = drawn((2, 4, 20, 6), (2, 4, 20, 6), (2, 4, 20, 6), (2, 4, 20, 6))
    cases = [(system, causal) for system in ("rows", "heads", "ring") for causal in (True, False)]
    found = on_ranks(ranks, on_a_rank.softmax, cases, q, k, v, grad)
    for case in cases:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend_dense(*inputs, Causal() if case[1] else None)
        right = [out, *torch.autograd.grad((out * grad).sum(), inputs)]
        for which, expected in enumerate(right):
            parts = torch.cat([each[case][which] for each in found], dim=2)
            torch.testing.assert_close(parts, expected.detach(), rtol=0, atol=1e-9)


def test_heads_that_share_keys():
    q, k, v, grad = drawn((1, 4, 10, 6), (1, 2, 10, 6), (1, 2, 10, 6), (1, 4, 10, 6))
    cases = [("rows", True), ("heads", False)]
    found = on_ranks(2, on_a_rank.softmax, cases, q, k, v, grad)
    for case in cases:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend_dense(*inputs, Causal() if case[1] else None)
        right = [out, *torch.autograd.grad((out * grad).sum(), inputs)]
        for which, expected in enumerate(right):
            parts = torch.cat([each[case][which] for each in found], dim=2)
            torch.testing.assert_close(parts, expected.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("system, names", [("rows", ["softmax"]), ("heads", ["softmax", "sliding-window"])])
def test_layers_know_where_their_part_stands(system, names):
    config = {"heads": 2, "causal": True, "position": "rotary"}
    x, grad = drawn((2, 12, 16), (2, 12, 16))
    found = on_ranks(2, on_a_rank.layers, system, names, x, grad, config)
    for name in names:
        torch.manual_seed(0)
        layer, inputs = create(name, dim=16, **config).double(), x.clone().requires_grad_()
        y = layer(inputs)
        (y * grad).sum().backward()
        for which, expected in enumerate((y, inputs.grad)):
            parts = torch.cat([each[name][which] for each in found], dim=1)
            torch.testing.assert_close(parts, expected.detach(), rtol=0, atol=1e-9)
        for parameter, summed in zip(layer.parameters(), found[0][name][2]):
            torch.testing.assert_close(summed, parameter.grad, rtol=0, atol=1e-9)


def test_pitfall_logits_that_differ_widely_between_blocks_keep_their_common_maximum():
    """Merged with each block's own maximum, the large logits of one block would drown or overflow."""
    q, k, v, grad = drawn(*[(1, 2, 8, 4)] * 4)
    k[:, :, 4:] *= 1000
    found = on_ranks(2, on_a_rank.softmax, [("rows", False)], q, k, v, grad)
    out = torch.cat([each["rows", False][0] for each in found], dim=2)
    torch.testing.assert_close(out, attend_dense(q, k, v), rtol=0, atol=1e-9)


def test_pitfall_two_cores_show_no_speed_but_that_no_worker_holds_the_scores():
    """Twice the length is twice the memory; the scores of a worker would be four times as many."""
    short, long = (max(each) for each in zip(*on_ranks(2, on_a_rank.peaks, "rows", (512, 1024))))
    assert long < 2.2 * short
    assert long < 512 * 512 * 4


def test_pitfall_the_mixing_matrix_keeps_the_routing_that_x_chose():
    """Fed with unit vectors instead of x, a router would choose anew: the matrix of something else."""
    x = drawn((1, 24, 32))[0]
    for name in ("routing-transformer", "moh"):
        torch.manual_seed(0)
        layer = create(name, dim=32, heads=4, causal=True).double().eval()
        matrix = layer.mixing_matrix(x)
        torch.testing.assert_close(layer.mix(matrix, x), layer(x), rtol=0, atol=1e-9)
        assert matrix.triu(1).abs().max() == 0
        other = layer.mixing_matrix(x.flip(-1))
        assert (matrix - other).abs().max() > 0.01


def test_what_the_ring_sends_grows_with_the_length_and_what_lasp_2_sends_does_not():
    for system, exchange in (("ring", "send"), ("heads", "all_to_all")):
        found = on_ranks(2, on_a_rank.traffic, system, (16, 64, 512))[0]
        assert [each[3] for each in found] == [[exchange]] * 3
        sent = [each[2] for each in found]
        assert sent[1] == 4 * sent[0] and sent[2] == 32 * sent[0]
        assert len({each[0] for each in found}) == 1
    # Forward the keys and values go one step, backward keys, values and their gradients.
    rows = 2 * 8 * 8 * 4 * 2
    assert on_ranks(2, on_a_rank.traffic, "ring", (16,))[0][0][:3] == (4, 4 * rows, 4 * rows)


@pytest.mark.parametrize(
    "deed, arguments, said",
    [
        ("way", ("columns",), "way is 'columns', but attention is split by rows or by heads"),
        ("mix", ("heads", "softmax", {"heads": 1}), "heads is 1, which 2 workers cannot share evenly"),
        ("mix", ("heads", "softmax", {"heads": 4, "kv_heads": 1}), "kv_heads is 1, which 2 workers"),
        ("mix", ("rows", "sliding-window", {"heads": 2, "causal": True}), "pattern is .* split by heads"),
        ("mix", ("rows", "softmax", {"heads": 2, "position": "alibi"}), "cannot be split: Distributed"),
        ("mix", ("rows", "music-transformer", {"heads": 2}), "RelativeRule cannot be split: Distributed"),
        ("mix", ("rows", "flowformer", {"heads": 2}), "Flowformer has its own attend"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(deed, arguments, said):
    with pytest.raises(ValueError, match=said):
        on_ranks(2, on_a_rank.refused, deed, *arguments)
