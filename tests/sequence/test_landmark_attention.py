"""Landmark attention, as it is trained."""

import pytest
import torch

from regardant.core.landmarks import insert_landmarks
from regardant.sequence.landmark_attention import LandmarkAttention
from regardant.sequence.softmax import Softmax
from regardant.task.score import IGNORED, label_loss

CONFIGS = [
    {"block": 4},
    {"block": 1, "kv_heads": 2},
    {"block": 7, "position": "alibi"},
    {"position": "rotary"},
]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return LandmarkAttention(32, 4, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_forward_is_the_equation_and_so_are_its_gradients(config, n):
    model, x = layer(**config), inputs(n).requires_grad_()
    parameters = [x, *model.parameters()]
    fast, plain = model(x), model.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), parameters)
    theirs = torch.autograd.grad((plain * weight).sum(), parameters)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_stepping_equals_forward(config):
    model, x = layer(**config), inputs(30)
    with torch.no_grad():
        whole = model(x)
        _, state = model.prefill(x[:, :11])
        for t in range(11, 30):
            y, state = model.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-9)


def test_inside_the_first_block_it_is_softmax():
    model, x = layer(block=10), inputs(10)
    dense = Softmax(32, 4, causal=True).double()
    dense.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), dense(x), rtol=0, atol=1e-12)


def test_pitfall_the_landmark_of_the_own_block_is_invisible_also_to_itself():
    matrix = layer(block=4).mixing_matrix(inputs(15))
    own = torch.arange(15)[:, None] // 5 == torch.arange(15) // 5
    assert matrix[..., torch.arange(15) % 5 == 4].abs().max() == 0
    of_the_first = matrix[:, :, 4]  # the landmark of block 0: its own tokens, and no gate
    torch.testing.assert_close(of_the_first[..., :4].sum(-1), torch.ones(2, 4, dtype=torch.float64))
    assert (matrix * ~own).abs().max() > 0


def test_pitfall_values_of_landmarks_are_never_read():
    model, x = layer(block=4), inputs(15)
    q, k, v = model.project(x)
    changed = v.clone()
    changed[:, :, 4::5] = 1e6
    pattern = model.visible(15, across=False, padding=None)
    before, after = (model.attend(q, k, rows, x=x, pattern=pattern) for rows in (v, changed))
    assert torch.equal(before, after)


def test_pitfall_the_gate_and_the_tokens_are_not_counted_twice():
    torch.testing.assert_close(
        layer(block=3).mixing_matrix(inputs(22)).sum(-1), torch.ones(2, 4, 22, dtype=torch.float64)
    )


def test_pitfall_a_row_that_sees_nothing_gives_zeros_and_finite_gradients():
    model, x = layer(block=3), inputs(9).requires_grad_()
    padding = torch.ones(2, 9, dtype=torch.bool)
    padding[0, :3] = False  # of the first block only its landmark is left
    heads = model.mixing_matrix(x, padding=padding)
    assert heads[0, :, 3].abs().max() == 0
    y = model(x, padding=padding)
    torch.testing.assert_close(y, model.reference(x, padding=padding), rtol=0, atol=1e-9)
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_pitfall_the_loss_is_on_ordinary_tokens_only():
    labels = torch.tensor([[1, 2, 3, 4]])
    spread = insert_landmarks(labels, block=2, landmark=IGNORED)
    logits = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(label_loss(logits, spread), label_loss(logits[:, [0, 1, 3, 4]], labels))


def test_bad_configuration_says_what_would_be_right():
    with pytest.raises(ValueError, match="block is 0"):
        LandmarkAttention(32, 4, block=0)
