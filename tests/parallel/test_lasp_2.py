"""LASP-2: linear attention by gathered states, over real processes."""

import pytest
import torch

from regardant import create
from regardant.core.decayed_linear import decayed_linear
from regardant.core.decayed_rule import DecayedState
from regardant.core.pattern import Causal
from regardant.core.plan import attend_dense
from regardant.parallel.processes import on_ranks
from tests.parallel import on_a_rank


def drawn(*shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def whole_linear(q, k, v, grad, decay, state):
    """Outputs, gradients and last state of one process."""
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out, last = decayed_linear(*inputs, decay, state=state, return_state=True)
    return [out, *torch.autograd.grad((out * grad).sum(), inputs)], last


def unmasked(q, k, v, grad):
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = inputs[0] @ (inputs[1].mT @ inputs[2]).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return [out, *torch.autograd.grad((out * grad).sum(), inputs)]


def same(parts, right, axis=2, within=1e-9):
    for which, expected in enumerate(right):
        found = torch.cat([each[which] for each in parts], dim=axis)
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=within)


CASES = [
    (exchange, decays, True, carried)
    for exchange in ("gathered", "ring")
    for decays in (True, False)
    for carried in (True, False)
]
UNMASKED = ("gathered", False, False, False)


@pytest.mark.parametrize("ranks, each", [(1, 9), (2, 65), (4, 7)])
def test_outputs_gradients_and_state_are_those_of_one_process(ranks, each):
    n = ranks * each
    q, k, v, grad, state = drawn((2, 4, n, 3), (2, 2, n, 3), (2, 2, n, 5), (2, 4, n, 5), (2, 4, 3, 5))
    decay = -torch.tensor([0.0, 0.01, 0.4, 30.0], dtype=torch.float64)
    found = on_ranks(ranks, on_a_rank.linear, [*CASES, UNMASKED],
                     q, k, v, grad, decay, state)  # fmt: skip
    for case in CASES:
        exchange, decays, _, carried = case
        right, last = whole_linear(q, k, v, grad, decay if decays else None, state if carried else None)
        same([each[case][0] for each in found], right)
        for each_rank in found:
            its = each_rank[case][1]
            if exchange == "ring":
                assert its is None
            else:
                torch.testing.assert_close(its.matrix, last, rtol=0, atol=1e-9)
                assert its.length == n + 7 * carried
    same([each[UNMASKED][0] for each in found], unmasked(q, k, v, grad))


def test_a_state_carries_a_sequence_on_segment_by_segment():
    q, k, v, grad = drawn(*[(1, 2, 24, 4)] * 4)
    decay, state = torch.tensor([-0.1, -0.5], dtype=torch.float64), torch.zeros(1, 2, 4, 4).double()
    right, last = whole_linear(q, k, v, grad, decay, None)
    for first in (0, 8, 16):
        segment = [x[:, :, first : first + 8] for x in (q, k, v, grad)]
        case = ("gathered", True, True, True)
        found = on_ranks(2, on_a_rank.linear, [case], *segment, decay, state)
        out = torch.cat([each[case][0][0] for each in found], dim=2)
        torch.testing.assert_close(out, right[0][:, :, first : first + 8].detach(), rtol=0, atol=1e-9)
        state = found[0][case][1].matrix
    torch.testing.assert_close(state, last, rtol=0, atol=1e-9)


def test_softmax_layers_of_hybrids_gather_keys_and_values():
    shapes = (1, 4, 10, 6), (1, 2, 10, 6), (1, 2, 10, 6), (1, 4, 10, 6)
    q, k, v, grad = drawn(*shapes)
    cases = [("lasp-2", True), ("lasp-2", False)]
    found = on_ranks(2, on_a_rank.softmax, cases, q, k, v, grad)
    for case in cases:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend_dense(*inputs, Causal() if case[1] else None)
        right = [out, *torch.autograd.grad((out * grad).sum(), inputs)]
        same([each[case] for each in found], right)


NAMES = [
    "lightning-attention-2", "transnormerllm", "tnl-lightning-attention",
    "softmax", "sliding-window", "gated-attention", "softplus-attention-lssa", "music-transformer",
]  # fmt: skip


@pytest.mark.parametrize("config", [{}, {"position": "rotary"}, {"position": "learned", "max_length": 16}])
def test_layers_know_where_their_part_stands(config):
    config = {"heads": 2, "causal": True} | config
    x, grad = drawn((2, 12, 16), (2, 12, 16))
    found = on_ranks(2, on_a_rank.layers, "lasp-2", NAMES, x, grad, config)
    for name in NAMES:
        torch.manual_seed(0)
        layer, inputs = create(name, dim=16, **config).double(), x.clone().requires_grad_()
        y = layer(inputs)
        (y * grad).sum().backward()
        same([each[name][:2] for each in found], [y, inputs.grad], axis=1)
        for each in found:
            for parameter, summed in zip(layer.parameters(), each[name][2]):
                torch.testing.assert_close(summed, parameter.grad, rtol=0, atol=1e-9)


def test_two_collectives_whose_payload_does_not_know_the_length():
    state = 2 * 8 * 8 * 4
    for each in on_ranks(2, on_a_rank.traffic, "lasp-2", (16, 64, 512)):
        assert each == [(2, 2 * state, 2 * state, ["all_gather"])] * 3


@pytest.mark.parametrize("ranks", [2, 4])
def test_pitfall_lasps_ring_takes_a_step_from_rank_to_rank(ranks):
    found = on_ranks(ranks, on_a_rank.lasp_steps, 16)
    assert [each["gathered"] for each in found] == [2] * ranks
    assert sum(each["ring"] for each in found) == 2 * (ranks - 1)


def test_pitfall_the_prefix_leaves_out_a_ranks_own_part():
    """Were M_t in P_t, a rank would meet its own state twice: here rank 1 meets nothing else."""
    q, k, v, grad = drawn(*[(1, 1, 4, 2)] * 4)
    k[:, :, :2] = 0
    case = ("gathered", False, True, False)
    found = on_ranks(2, on_a_rank.linear, [case], q, k, v, grad, None, None)
    assert found[0][case][0][0].abs().max() == 0
    own = q[:, :, 2:] @ k[:, :, 2:].mT
    torch.testing.assert_close(found[1][case][0][0], own.tril() @ v[:, :, 2:], rtol=0, atol=1e-12)


def test_pitfall_gradients_come_back_through_the_gathering():
    """Rank 1 alone has a loss; keys and values of rank 0, which it met as a state, get their gradients."""
    q, k, v, grad = drawn(*[(1, 1, 6, 2)] * 4)
    grad[:, :, :3] = 0
    case = ("gathered", True, True, False)
    decay = torch.tensor([-0.3], dtype=torch.float64)
    found = on_ranks(2, on_a_rank.linear, [case], q, k, v, grad, decay, None)
    right, _ = whole_linear(q, k, v, grad, decay, None)
    for which in (2, 3):
        got = found[0][case][0][which]
        assert got.abs().max() > 0
        torch.testing.assert_close(got, right[which][:, :, :3], rtol=0, atol=1e-12)


def test_pitfall_a_last_part_that_is_shorter_is_refused_before_anything_is_sent():
    for length, padded in ((13, 16), (3, 4)):
        with pytest.raises(ValueError, match=f"{length} tokens, which 4 ranks .* pad it to {padded}"):
            on_ranks(4, on_a_rank.refused, "cut", length)


def test_pitfall_states_are_summed_in_float32():
    q, k, v, grad = drawn(*[(1, 1, 512, 2)] * 4, dtype=torch.float32)
    case = ("gathered", False, True, False)
    low = [x.to(torch.bfloat16) for x in (q, k.abs(), v.abs() + 1, grad)]
    found = on_ranks(2, on_a_rank.linear, [case], *low, None, None)
    state = found[1][case][1].matrix
    exact = low[1].double().mT @ low[2].double()
    assert state.dtype == torch.float32
    torch.testing.assert_close(state.double(), exact, rtol=1e-5, atol=0)
    for plain, cast in on_ranks(2, on_a_rank.autocast, *low[:3]):
        for one, other in zip(plain, cast):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    "deed, arguments, said",
    [
        ("cut", (13,), "the sequence has 13 tokens, which 2 ranks cannot share evenly: pad it to 14"),
        ("state", (torch.zeros(1, 3, 8, 8),), r"the state is \[1, 3, 8, 8\], .* of another configuration"),
        ("decay", (torch.zeros(2),), "log_decay asks for a gradient"),
        ("mix", ("lasp-2", "moh", {"heads": 2}), "MoH has its own forward"),
        ("mix", ("lasp-2", "aaren", {"heads": 2, "causal": True}), "Aaren has its own attend"),
        ("mix", ("lasp-2", "softmax", {"heads": 2, "context_dim": 8}), "a layer across two sequences"),
        (
            "mix",
            ("ring", "lightning-attention-2", {"heads": 2}),
            "DecayedLinearRule cannot be split: RingAtt",
        ),
        ("mix", ("ring", "sliding-window", {"heads": 2, "causal": True}), "pattern is .*Window"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(deed, arguments, said):
    with pytest.raises(ValueError, match=said):
        on_ranks(2, on_a_rank.refused, deed, *arguments)


def test_a_state_may_go_on_into_decoding():
    q, k, v, grad = drawn(*[(1, 2, 8, 4)] * 4)
    case = ("gathered", False, True, False)
    state = on_ranks(2, on_a_rank.linear, [case], q, k, v, grad, None, None)[0][case][1]
    assert isinstance(state, DecayedState) and state.length == 8
    torch.testing.assert_close(state.matrix, k.mT @ v, rtol=0, atol=1e-9)
