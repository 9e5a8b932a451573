import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from regardant.lens.logit_lens import direct_attribution, logit_lens
from regardant.lens.residual_stream import Anatomy, read_parts
from regardant.world.planted import planted_induction

IDS = torch.randint(1, 40, (2, 9), generator=torch.Generator().manual_seed(0))


def llama():
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=3, n_head=4, n_positions=32))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = make().double().eval()
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("make", [llama, gpt2])
def test_parts_sum_up_to_the_stream_and_their_attributions_to_the_logits(make):
    model = seeded(make)
    with torch.no_grad():
        found = model(IDS, output_hidden_states=True)
    parts = read_parts(model, IDS, rows=[2, -1])
    for layer in range(2):
        assert (parts.after(layer) - found.hidden_states[layer + 1][:, [2, -1]]).abs().max() < 1e-9
    assert parts.heads.shape == (3, 2, 4, 2, 32)
    targets, others = torch.tensor([3, 7]), torch.tensor([5, 1])
    logits = found.logits[:, -1]
    attribution = direct_attribution(Anatomy.of(model), parts, targets, row=1)
    assert (attribution.total - logits.gather(1, targets[:, None])[:, 0]).abs().max() < 1e-4
    between = direct_attribution(Anatomy.of(model), parts, targets, against=others, row=1)
    expected = (logits.gather(1, targets[:, None]) - logits.gather(1, others[:, None]))[:, 0]
    assert (between.total - expected).abs().max() < 1e-4


@pytest.mark.parametrize("make", [llama, gpt2])
def test_pitfall_the_logit_lens_reads_through_the_last_norm(make):
    model = seeded(make)
    targets = torch.tensor([3, 7])
    with torch.no_grad():
        said = logit_lens(model, IDS, targets=targets)
        found = model(IDS, output_hidden_states=True)
        middle = model.get_output_embeddings()(Anatomy.of(model).norm(found.hidden_states[1][:, -1]))
    assert said.shape == (4, 2)
    last = found.logits[:, -1].log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert (said[-1] - last).abs().max() < 1e-5
    assert (said[1] - middle.log_softmax(-1).gather(1, targets[:, None])[:, 0]).abs().max() < 1e-5


def test_the_copying_head_alone_writes_the_answer():
    model = planted_induction(previous=(0, 1), copying=(2, 3))
    ids, answer = torch.tensor([[0, 9, 3, 4, 12, 3]]), torch.tensor([4])
    anatomy = Anatomy.of(model)
    found = direct_attribution(anatomy, read_parts(model, ids), answer)
    assert found.head_map().top(1) == [(2, 3)]
    others = found.heads.flatten().clone()
    others[11] = 0
    assert float(found.heads[2, 0, 3]) > 10 and float(others.abs().max()) < 1e-9
    assert float((found.total - model(ids).logits[0, -1, 4]).abs()) < 1e-6
    said = logit_lens(model, ids, targets=answer)
    assert (said[:3].exp() - 1 / 24).abs().max() < 1e-6 and float(said[3].exp()) > 0.99


def test_a_model_with_norms_behind_its_sublayers_is_refused():
    config = Gemma2Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = seeded(lambda: Gemma2ForCausalLM(config))
    with pytest.raises(ValueError, match="do not sum up to its residual stream"):
        read_parts(model, IDS)
