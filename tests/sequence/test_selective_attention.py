"""Selective look-up: attention where it is needed."""

import pytest
import torch

from regardant.core.record import Record
from regardant.sequence.selective_attention import SelectiveAttention, repeated
from regardant.sequence.softmax import Softmax


def layer(seed=0, **own):
    torch.manual_seed(seed)
    return SelectiveAttention(16, 2, **own).double()


def inputs(n, batch=3, seed=1):
    return torch.randn(batch, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(mixer):
    """The softmax layer with the same projections."""
    other = Softmax(16, 2, causal=True).double()
    other.load_state_dict({name: w for name, w in mixer.state_dict().items() if "choice" not in name})
    return other


def test_repeated_tokens():
    tokens = torch.tensor([[3, 1, 3, 3, 2, 1], [0, 1, 2, 3, 4, 5]])
    assert repeated(tokens).int().tolist() == [[0, 0, 1, 1, 0, 1], [0] * 6]


def test_positions_that_a_program_chose_have_softmax_and_the_others_nothing():
    mixer, x = layer(), inputs(12)
    chosen = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    chosen[1] = False
    expected = dense(mixer)(x) * chosen[..., None]
    torch.testing.assert_close(mixer(x, chosen=chosen), expected, rtol=0, atol=1e-12)


def test_the_learned_choice_multiplies():
    mixer, x = layer(), inputs(12)
    share = torch.sigmoid(x @ mixer.to_choice.weight[0] + mixer.to_choice.bias)
    expected = dense(mixer)(x) * (share * (share >= 0.5))[..., None]
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


def test_pitfall_the_budget_goes_to_whoever_comes_first_not_to_a_later_token():
    mixer, x = layer(budget=3), inputs(20)
    record = Record()
    mixer(x, record=record)
    (chosen,) = record.seen["chosen"]
    wanted = x @ mixer.to_choice.weight[0] + mixer.to_choice.bias >= 0
    for sample in range(3):
        assert chosen[sample].nonzero().flatten().tolist() == wanted[sample].nonzero().flatten().tolist()[:3]
    loud = x.clone()
    loud[:, 15:] = 100 * mixer.to_choice.weight[0]
    torch.testing.assert_close(mixer(loud)[:, :15], mixer(x)[:, :15], rtol=0, atol=1e-12)


def test_the_penalty_is_for_wishes_beyond_the_budget():
    x = inputs(20)
    for budget, penalty in ((4, 1.0), (4, 2.5), (20, 1.0)):
        mixer, record = layer(budget=budget, penalty=penalty), Record()
        mixer(x, record=record)
        wishes = torch.sigmoid(x @ mixer.to_choice.weight[0] + mixer.to_choice.bias).sum(1)
        expected = penalty * (wishes - budget).clamp(min=0).mean() / 20
        torch.testing.assert_close(record.loss(), expected)


def test_the_choice_learns():
    mixer, x = layer(), inputs(12)
    mixer(x).square().sum().backward()
    assert mixer.to_choice.weight.grad.abs().max() > 1e-6


def test_a_prompt_is_gone_on_from_with_what_is_left_of_the_budget():
    mixer, x = layer(budget=5, position="rotary"), inputs(24)
    whole = mixer(x)
    y, state = mixer.prefill(x[:, :6])
    torch.testing.assert_close(y, whole[:, :6], rtol=0, atol=1e-12)
    for t in range(6, 24):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-12)
    assert (state.chosen == 5).all()


@pytest.mark.parametrize(
    ("own", "word"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"penalty": -1.0}, "penalty is -1"),
        ({"position": "alibi"}, "a bias on"),
    ],
)
def test_bad_configuration(own, word):
    with pytest.raises(ValueError, match=word):
        layer(**own)


def test_a_choice_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"chosen is .* but it is bool \[3, 5\]"):
        layer()(inputs(5), chosen=torch.ones(3, 4, dtype=torch.bool))
