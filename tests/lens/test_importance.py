import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import regardant
from regardant.edit.mask_heads import MaskHeads
from regardant.lens.importance import importance_by_gradient, importance_by_removal, next_token_loss
from regardant.world.planted import planted_induction

TEXT = torch.tensor([[0, 9, 3, 4, 5, 12, 3], [0, 8, 6, 7, 2, 11, 6]])


def answer_loss(model):
    said = model(TEXT).logits[:, -1].log_softmax(-1)
    return -said.gather(1, torch.tensor([[4], [7]]))[:, 0]


def test_removal_finds_the_pair_and_nothing_else():
    model = planted_induction(previous=(0, 1), copying=(2, 3))
    found = importance_by_removal(model, answer_loss)
    assert sorted(found.top(2)) == [(0, 1), (2, 3)]
    rest = [found[each] for each in found.top(12)[2:]]
    assert found[0, 1] > 2 and found[2, 3] > 2 and max(map(abs, rest)) < 1e-6
    few = importance_by_removal(model, answer_loss, heads=[(2, 3)])
    assert few.measured == 1 and few[2, 3] == pytest.approx(found[2, 3])


def test_the_gradient_is_that_of_the_gate():
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = LlamaForCausalLM(config).double().eval()
    ids = torch.randint(40, (3, 8), generator=torch.Generator().manual_seed(0))

    def loss(model):
        return next_token_loss(ids)(model).double()

    found = importance_by_gradient(model, loss)
    # A gate a little below 1, by the edit: the slope of each sample's loss, before the absolute value.
    small = 1e-3
    with torch.no_grad():
        base = loss(model)
        for layer, head in ((0, 2), (1, 0)):
            with regardant.apply(model, MaskHeads(chosen=[(layer, head)], strength=small)):
                slope = (loss(model) - base) / -small
            assert found[layer, head] == pytest.approx(float(slope.abs().mean()), rel=0.05)


def test_a_loss_that_is_no_number_a_sample_is_refused():
    model = planted_induction()
    with pytest.raises(ValueError, match="it is one number a sample"):
        importance_by_gradient(model, lambda m: m(TEXT).logits.sum())
    with torch.no_grad(), pytest.raises(ValueError, match="has no gradient"):
        importance_by_gradient(model, lambda m: m(TEXT).logits.detach().sum((1, 2)))
