import pytest
import torch

from regardant.core.decayed_linear import decayed_linear, decayed_linear_reference, decayed_linear_step


def draw(n, *, batch=2, heads=3, groups=None, d=5, e=4, dtype=torch.float64, seed=0):
    """Random q, k, v, log_decay and state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    groups = heads if groups is None else groups
    q, k, v = normal(batch, heads, n, d), normal(batch, groups, n, d), normal(batch, groups, n, e)
    log_decay = -torch.linspace(0.01, 1.5, heads, dtype=torch.float64)
    return q, k, v, log_decay, normal(batch, heads, d, e)


def by_steps(q, k, v, log_decay, state):
    outs = []
    for t in range(q.shape[2]):
        out, state = decayed_linear_step(q[:, :, t], k[:, :, t], v[:, :, t], state, log_decay)
        outs.append(out)
    return torch.stack(outs, dim=2), state


def assert_equal(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 100, 257, 1300])
@pytest.mark.parametrize("block", [1, 8, 16, 64, 100])
def test_equals_the_plain_equation_and_the_steps(n, block):
    q, k, v, log_decay, state = draw(n, batch=1 + n % 2)
    out, last = decayed_linear(q, k, v, log_decay, state=state, return_state=True, block=block)
    stepped, stepped_last = by_steps(q, k, v, log_decay, state)
    assert_equal(out, decayed_linear_reference(q, k, v, log_decay, state=state))
    assert_equal(out, stepped)
    assert_equal(last, stepped_last)


@pytest.mark.parametrize(
    ("batch", "heads", "groups"), [(1, 1, 1), (3, 8, 8), (70, 1, 1), (2, 70, 35), (5, 6, 2), (1, 12, 1)]
)
@pytest.mark.parametrize("n", [3, 150])
def test_every_cut_into_tiles_gives_the_same(batch, heads, groups, n):
    q, k, v, log_decay, state = draw(n, batch=batch, heads=heads, groups=groups, d=3, e=2)
    inputs = [x.requires_grad_() for x in (q, k, v, state)]
    out, last = decayed_linear(q, k, v, log_decay, state=state, return_state=True, block=16)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    grads = torch.autograd.grad((out * weight).sum(), inputs)
    expected = decayed_linear_reference(q, k, v, log_decay, state=state)
    assert_equal(out, expected)
    assert_equal(grads, torch.autograd.grad((expected * weight).sum(), inputs))
    assert last.shape == state.shape


@pytest.mark.parametrize("n", [1, 7, 64, 100])
@pytest.mark.parametrize("block", [8, 16, 64])
def test_backward_is_exact(n, block):
    q, k, v, log_decay, state = draw(n, batch=1, heads=2, groups=1 + n % 2, d=3, e=2)
    inputs = [x.requires_grad_() for x in (q, k, v, state)]

    def both(q, k, v, state):
        return decayed_linear(q, k, v, log_decay, state=state, return_state=True, block=block)

    assert torch.autograd.gradcheck(both, inputs, fast_mode=n > 7)


@pytest.mark.parametrize("wanted", ["out", "state"])
def test_backward_from_one_of_the_two_results(wanted):
    q, k, v, log_decay, state = draw(37)
    inputs = [x.requires_grad_() for x in (q, k, v, state)]
    pick = ("out", "state").index(wanted)
    fast = decayed_linear(q, k, v, log_decay, state=state, return_state=True, block=8)[pick]
    slow = by_steps(q, k, v, log_decay, state)[pick]
    expected = torch.autograd.grad(slow.square().sum(), inputs, materialize_grads=True)
    assert_equal(torch.autograd.grad(fast.square().sum(), inputs), expected)


def test_a_learned_decay_gets_its_gradient():
    for n in (1, 7, 100):
        q, k, v, log_decay, state = draw(n, groups=1)
        inputs = [x.requires_grad_() for x in (q, k, v, log_decay, state)]
        out, last = decayed_linear(q, k, v, log_decay, state=state, return_state=True, block=8)
        stepped, stepped_last = by_steps(q, k, v, log_decay, state)
        assert_equal(out, stepped)
        grads = torch.autograd.grad(out.square().sum() + last.square().sum(), inputs)
        expected = torch.autograd.grad(stepped.square().sum() + stepped_last.square().sum(), inputs)
        assert_equal(grads, expected)
        assert grads[3].abs().min() > 0


def test_a_sequence_may_be_split_anywhere():
    q, k, v, log_decay, state = draw(50)
    whole, last = decayed_linear(q, k, v, log_decay, state=state, return_state=True, block=8)
    for split in range(1, 50):
        first, rest = ([x[:, :, part] for x in (q, k, v)] for part in (slice(split), slice(split, None)))
        out_1, passed = decayed_linear(*first, log_decay, state=state, return_state=True, block=8)
        out_2, end = decayed_linear(*rest, log_decay, state=passed, return_state=True, block=8)
        assert_equal(torch.cat([out_1, out_2], dim=2), whole)
        assert_equal(end, last)


def test_without_decay_it_is_the_plain_causal_sum():
    q, k, v, log_decay, state = draw(130)
    out, last = decayed_linear(q, k, v, return_state=True, block=16)
    assert_equal(out, (q @ k.mT).tril() @ v)
    assert_equal(last, k.mT @ v)
    assert_equal(out, decayed_linear(q, k, v, torch.zeros_like(log_decay), block=16))
    assert_equal(by_steps(q, k, v, None, state)[0], decayed_linear_reference(q, k, v, state=state))


@pytest.mark.parametrize("log_decay", [-2.0, -80.0, -1e6, float("-inf")])
def test_no_decay_is_too_strong(log_decay):
    q, k, v, _, state = draw(100, dtype=torch.float32)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    log_decay = torch.full((3,), log_decay)
    out = decayed_linear(q, k, v, log_decay, state=state)
    expected = decayed_linear_reference(q, k, v, log_decay, state=state)
    assert_equal(out, expected, 1e-4)
    assert_equal(
        torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), tolerance=1e-3
    )
    if log_decay[0] < -100:
        assert_equal(out, (q * k).sum(-1, keepdim=True) * v, 1e-4)


def test_the_past_does_not_see_the_future():
    q, k, v, log_decay, _ = draw(90)
    before = decayed_linear(q, k, v, log_decay, block=16)
    for x in (q, k, v):
        x[:, :, 41:] += 1
    after = decayed_linear(q, k, v, log_decay, block=16)
    assert torch.equal(before[:, :, :41], after[:, :, :41])
    assert not torch.isclose(before[:, :, 41:], after[:, :, 41:]).all()


def test_inputs_are_left_as_they_were_in_any_layout():
    q, k, v, log_decay, state = draw(75)
    expected = decayed_linear_reference(q, k, v, log_decay, state=state)
    # Heads split off the last axis of a projection: strided along tokens.
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v))
    copies = [x.detach().clone() for x in (q, k, v, state)]
    out = decayed_linear(q, k, v, log_decay, state=state.requires_grad_(), block=16)
    out.square().sum().backward()
    assert_equal(out, expected)
    for x, copy in zip((q, k, v, state), copies):
        assert torch.equal(x, copy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_sums_in_float32(dtype):
    q, k, v, log_decay, _ = draw(700, dtype=dtype, d=16, e=16)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out, last = decayed_linear(q, k, v, log_decay, return_state=True)
    assert out.dtype == dtype and last.dtype == torch.float32
    exact = [x.detach().double().requires_grad_() for x in inputs]
    exact_out, exact_last = decayed_linear(*exact, log_decay, return_state=True)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact_out, rtol=rounding, atol=rounding)
    torch.testing.assert_close(last.double(), exact_last, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(out.sum(), inputs)
    for grad, expected in zip(grads, torch.autograd.grad(exact_out.sum(), exact)):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), expected, rtol=rounding, atol=rounding)
    stepped, state = decayed_linear_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], last, log_decay)
    assert stepped.dtype == dtype and state.dtype == torch.float32


@pytest.mark.parametrize("learned", [False, True])
def test_autocast_does_not_reach_the_sums(learned):
    q, k, v, log_decay, _ = draw(70, dtype=torch.float32)
    expected = decayed_linear(q, k, v, log_decay)
    with torch.autocast("cpu", torch.bfloat16):
        out = decayed_linear(q, k, v, log_decay.requires_grad_(learned), block=64)
    assert_equal(out, expected, 1e-5)


def test_backward_remembers_only_its_inputs():
    q, k, v, log_decay, state = draw(640)
    inputs = [x.requires_grad_() for x in (q, k, v, state)]
    saved = []

    def pack(x):
        saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        decayed_linear(q, k, v, log_decay, state=state)
    assert sorted(saved) == sorted(x.data_ptr() for x in (*inputs, log_decay))


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().size() // x.element_size())
        return result


def test_nothing_larger_than_the_inputs_is_ever_made():
    q, k, v, log_decay, _ = draw(20_000, batch=1, heads=2, d=8, e=8, dtype=torch.float32)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    with LargestTensor() as largest:
        torch.autograd.grad(decayed_linear(q, k, v, log_decay.float()).sum(), inputs)
    assert largest.elements == q.numel()


def test_a_step_leaves_its_state_alone_and_can_be_differentiated():
    q, k, v, log_decay, state = draw(1, groups=1)
    row = [x[:, :, 0].requires_grad_() for x in (q, k, v)]
    kept = state.clone()
    for decay in (None, log_decay):
        decayed_linear_step(*row, state, decay)
        assert torch.equal(state, kept)
    assert torch.autograd.gradcheck(
        decayed_linear_step, (*row, state.requires_grad_(), log_decay.requires_grad_())
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"q": torch.zeros(2, 3, 4)}, r"q has shape \(2, 3, 4\)"),
        ({"k": torch.zeros(1, 4, 6, 3)}, r"k has shape \(1, 4, 6, 3\), but q takes \[1, g, 5, 3\]"),
        ({"v": torch.zeros(1, 2, 5, 3)}, r"v has shape \(1, 2, 5, 3\), but k takes \[1, 4, 5, e\]"),
        (
            {"k": torch.zeros(1, 3, 5, 3), "v": torch.zeros(1, 3, 5, 3)},
            "k and v have 3 heads, but their number must divide the 4 heads of q",
        ),
        ({"q": torch.zeros(1, 4, 5, 3).double()}, "they must be alike"),
        ({"log_decay": torch.zeros(3)}, r"log_decay has shape \(3,\), but q takes \[4\]"),
        ({"state": torch.zeros(1, 4, 3, 2)}, r"state has shape \(1, 4, 3, 2\)"),
        ({"block": 0}, "block is 0, but a block holds at least one token"),
    ],
)
def test_bad_input_is_one_clear_sentence(change, sentence):
    given = {name: torch.zeros(1, 4, 5, 3) for name in ("q", "k", "v")} | change
    with pytest.raises(ValueError, match=sentence):
        decayed_linear(**given)
