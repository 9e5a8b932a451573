"""Answers behind prompts, preferences, and what is trained beside a frozen model."""

from __future__ import annotations

import math

import pytest
import torch

from regardant.train.fit import evaluate, fit
from regardant.train.low_rank import LowRank
from regardant.train.responses import Adapted, Preferences, Responses, answer_scores, frozen
from regardant.world.families import FAMILIES

EXAMPLES = [([5, 6, 7], [9]), ([8, 9], [10, 11, 12]), ([20, 21, 22, 23, 24], [25, 26])]


def llama():
    return FAMILIES["llama"].make()


def alone(model, prompt, answer):
    with torch.no_grad():
        logs = model(torch.tensor([[*prompt, *answer]])).logits.log_softmax(-1)[0]
    return sum(float(logs[len(prompt) - 1 + at, token]) for at, token in enumerate(answer))


def test_scores_of_answers_in_a_batch_are_those_of_each_text_alone():
    model = llama()
    task = Responses(EXAMPLES)
    with torch.no_grad():
        total, count = answer_scores(model, task.pairs)
        losses = task.losses(model, torch.arange(3))
    for row, (prompt, answer) in enumerate(EXAMPLES):
        assert float(total[row]) == pytest.approx(alone(model, prompt, answer), rel=1e-4)
        assert int(count[row]) == len(answer)
        assert float(losses[row]) == pytest.approx(-alone(model, prompt, answer) / len(answer), rel=1e-4)


def test_preferences_start_at_even_and_are_the_equation():
    model = llama()
    pairs = [([5, 6], [7], [8]), ([9], [10, 11], [12])]
    task = Preferences(pairs, reference=model, beta=0.5)
    with torch.no_grad():
        torch.testing.assert_close(task.losses(model, torch.arange(2)), torch.full((2,), math.log(2)))
        other = FAMILIES["llama"].make(seed=1)
        found = task.losses(other, torch.tensor([1]))
    before = alone(model, [9], [10, 11]) - alone(model, [9], [12])
    now = alone(other, [9], [10, 11]) - alone(other, [9], [12])
    assert float(found) == pytest.approx(math.log1p(math.exp(-0.5 * (now - before))), rel=1e-3)


def test_a_reference_in_training_mode_is_asked_as_it_is_used():
    model = FAMILIES["llama"].make()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    pairs = [([5, 6], [7], [8]), ([9], [10, 11], [12])]
    calm = Preferences(pairs, reference=model.eval())
    wild = Preferences(pairs, reference=model.train())
    torch.testing.assert_close(wild._before, calm._before)
    assert model.training and all(each.requires_grad for each in model.parameters())


def test_pitfall_every_token_of_the_answers_counts_alike_and_every_preference():
    task = Responses([([5], [6]), ([7], [8, 9, 10])])
    losses, rows = torch.tensor([4.0, 2.0]), torch.tensor([0, 1])
    assert float(task.loss(losses, rows)) == pytest.approx((4 + 3 * 2) / 4)
    total, count = task.metric(losses, rows)
    assert (float(total), float(count)) == (10.0, 4.0)
    pairs = Preferences([([5], [6], [7]), ([7], [8, 9, 10], [4])], reference=llama())
    assert float(pairs.loss(losses, rows)) == pytest.approx(3.0)


def test_low_rank_products_learn_beside_frozen_weights_and_merge():
    model = llama()
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    products = LowRank(model, ("q_proj", "v_proj"), rank=2)
    assert sum(each.numel() for each in products.parameters()) == 4 * 2 * ((64 + 64) + (64 + 32))
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        plain = model(ids).logits
        with products.at_work():
            assert torch.equal(model(ids).logits, plain)
    task = Responses(EXAMPLES)
    adapted = Adapted(model, products, task, products.at_work)
    before = float(task.losses(model, torch.arange(3)).mean())
    fit(adapted, task, steps=40, batch=3, learning_rate=2e-2, seed=0)
    with torch.no_grad():
        with products.at_work():
            after, under = float(task.losses(model, torch.arange(3)).mean()), model(ids).logits
        with products.merged():
            torch.testing.assert_close(model(ids).logits, under, atol=1e-4, rtol=1e-4)
        assert torch.equal(model(ids).logits, plain)
    assert after < 0.5 * before
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())
    assert all(each.requires_grad for each in model.parameters())


def test_frozen_is_for_a_while():
    model = llama().train()
    model.model.norm.weight.requires_grad_(False)
    with frozen(model):
        assert not model.training and not any(each.requires_grad for each in model.parameters())
    assert model.training and not model.model.norm.weight.requires_grad
    assert sum(not each.requires_grad for each in model.parameters()) == 1


def test_a_penalty_is_added_and_held_out_examples_are_not_trained_on():
    model, task = llama(), Responses(EXAMPLES, held_out=1)
    generator = torch.Generator().manual_seed(0)
    assert set(task.batch(50, generator)[0].tolist()) == {0, 1}
    assert [rows.tolist() for rows, _ in task.validation()] == [[2]]
    products = LowRank(model, ("q_proj",), rank=1)
    adapted = Adapted(
        model, products, task, products.at_work, penalty=lambda: products.into[0].sum() * 0 + 3.0
    )
    fitted = fit(adapted, task, steps=1, batch=2, learning_rate=1e-9, seed=0)
    assert fitted.losses[0] > 3.0
    assert evaluate(adapted, task) == pytest.approx(-alone(model, *EXAMPLES[2]) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Responses([]), "examples is empty"),
        (lambda: Responses([([], [1])]), "example 0 has 0 tokens of prompt"),
        (lambda: Responses(EXAMPLES, held_out=3), "held_out is 3"),
        (lambda: LowRank(llama(), ("nothing",)), "no linear layer of the model is named so"),
        (lambda: LowRank(llama(), ("q_proj",), rank=0), "rank is 0"),
        (lambda: Preferences([([1], [2], [3])], reference=llama(), beta=0), "beta is 0"),
    ],
)
def test_bad_input_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
