"""Landmark attention with its blocks retrieved."""

import pytest
import torch

from regardant.contract.meter import Meter
from regardant.core.state import Cache
from regardant.sequence.landmark_attention import LandmarkAttention
from regardant.sequence.landmark_retrieval import LandmarkRetrieval

CONFIGS = [
    {"block": 4},
    {"block": 3, "retrieved": 1, "kv_heads": 2},
    {"block": 2, "retrieved": 3, "position": "rotary"},
    {"block": 4, "choice": "token", "position": "rotary", "kv_heads": 1},
]


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return LandmarkRetrieval(32, 4, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("n", [1, 4, 5, 46])
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
@pytest.mark.parametrize("prompt", [0, 11, 15])
def test_stepping_equals_forward(config, prompt):
    model, x = layer(**config), inputs(40)
    with torch.no_grad():
        whole, state = model(x), model.start(2)
        if prompt:
            _, state = model.prefill(x[:, :prompt])
        for t in range(prompt, 40):
            y, state = model.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-9)


@pytest.mark.parametrize("position", ["none", "rotary"])
@pytest.mark.parametrize("choice", ["head", "token"])
def test_with_all_blocks_retrieved_it_is_what_was_trained(position, choice):
    torch.manual_seed(0)
    trained = LandmarkAttention(32, 4, block=3, position=position).double()
    model = layer(block=3, retrieved=9, position=position, choice=choice)
    model.load_state_dict(trained.state_dict())
    x = inputs(39)
    torch.testing.assert_close(model(x), trained(x), rtol=0, atol=1e-12)


def test_the_blocks_are_those_of_the_best_landmarks():
    model, x = layer(block=4, retrieved=2), inputs(33)
    q, k, _ = model.project(x)
    scores = (q @ k[:, :, 4::5].mT)[:, :, 32]
    best = scores.topk(2).indices.sort(-1).values
    matrix = model.mixing_matrix(x)[:, :, 32]
    read = (matrix.unflatten(-1, (-1, 1))[..., :30, 0].unflatten(-1, (6, 5)) > 0).any(-1)
    assert read.sum() == 2 * 2 * 4
    assert torch.equal(read.nonzero()[:, 2].view(2, 4, 2), best)


def test_heads_that_choose_together_read_the_same_blocks():
    model, x = layer(block=4, retrieved=2, choice="token"), inputs(33)
    read = (model.mixing_matrix(x)[:, :, 32, :30].unflatten(-1, (6, 5)) > 0).any(-1)
    assert torch.equal(read, read[:, :1].expand_as(read)) and (read.sum(-1) == 2).all()


def test_far_blocks_all_stand_where_the_first_of_them_does():
    """One block to retrieve, the others padded: from a distance of two blocks on, it makes no difference."""
    model, x = layer(block=3, retrieved=1, position="rotary"), inputs(7, batch=1)
    outputs = []
    for between in range(6):
        text = torch.cat([x[:, :4], x.new_zeros(1, 4 * between, 32), x[:, 4:]], dim=1)
        padding = torch.ones(1, text.shape[1], dtype=torch.bool)
        padding[:, 4 : 4 + 4 * between] = False
        outputs.append(model(text, padding=padding)[:, -1])
    for far in outputs[2:]:
        torch.testing.assert_close(far, outputs[1], rtol=0, atol=1e-12)
    assert (outputs[1] - outputs[0]).abs().max() > 1e-4


def test_a_step_reads_no_block_that_it_did_not_retrieve():
    model, x = layer(block=4, retrieved=2), inputs(51, batch=1)
    with torch.no_grad():
        right, state = model(x)[:, 50], model.prefill(x[:, :50])[1]
        read = (model.mixing_matrix(x)[0, :, 50, :50].unflatten(-1, (10, 5)) > 0).any(-1)
        assert (read.sum(-1) == 2).all()
        for cache in (state.block_keys, state.block_values):
            cache.rows[0][~read] = torch.nan
        torch.testing.assert_close(model.step(x[:, 50], state)[0], right, rtol=0, atol=1e-9)


def test_finished_blocks_wait_on_the_device_that_they_are_given():
    model, x = layer(block=4, cache_device="cpu"), inputs(23)
    state = model.prefill(x)[1]
    assert state.block_keys.rows.shape == (2, 4, 4, 4 * 8) and state.landmarks.rows.shape == (2, 4, 4, 8)
    assert state.keys.rows.shape == (2, 4, 3, 8)
    elsewhere = layer(block=4, cache_device="meta").start(2)
    assert elsewhere.block_values.rows.device.type == "meta" and elsewhere.landmarks.rows.device.type == "cpu"
    assert isinstance(elsewhere.block_keys, Cache)


def test_pitfall_values_of_landmarks_are_never_read():
    model, x = layer(block=4), inputs(33)
    assert model.mixing_matrix(x)[..., 4::5].abs().max() == 0


def test_pitfall_rows_sum_to_one():
    torch.testing.assert_close(
        layer(block=4).mixing_matrix(inputs(33)).sum(-1), torch.ones(2, 4, 33, dtype=torch.float64)
    )


@pytest.mark.parametrize("config", [{"block": 0}, {"retrieved": 0}])
def test_bad_configuration_says_what_would_be_right(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        LandmarkRetrieval(32, 4, **config)
    with pytest.raises(ValueError, match="no choice is called 'tokens'; the nearest are token"):
        LandmarkRetrieval(32, 4, choice="tokens")


def test_what_a_step_does_is_linear_in_the_blocks_that_it_retrieves():
    x, work = inputs(200, batch=1), []
    for retrieved in (2, 4, 8):
        model = layer(block=7, retrieved=retrieved)
        with torch.no_grad():
            state = model.prefill(x[:, :199])[1]
            with (meter := Meter()):
                model.step(x[:, 199], state)
        work.append(meter.work)
    assert work[2] - work[1] == pytest.approx(2 * (work[1] - work[0]), rel=0.02)
