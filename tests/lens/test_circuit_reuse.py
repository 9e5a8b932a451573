import pytest
import torch
from scipy.stats import hypergeom
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from regardant.lens.circuit_reuse import CircuitReuse, Overlap, direct_effects, writes_against
from regardant.lens.head_map import HeadMap
from regardant.lens.patching import Patching, PromptPair, logit_difference
from regardant.task.circuit_prompts import (
    COLOURS,
    NAMES,
    OBJECTS,
    CircuitPrompts,
    coloured_objects,
    indirect_objects,
    single_tokens,
)

PIECES = sorted({*NAMES[:12], *COLOURS, *OBJECTS, "store", "park", "drink", "When", "gave"})


@pytest.fixture
def tokenizer():
    """Some words are single tokens behind a space; everything else is bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = list(alphabet), []
    for word in PIECES:
        for left, right in ((f"Ġ{word[:end]}", word[end]) for end in range(len(word))):
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append((left, right))
    vocabulary = {token: place for place, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_known_answers():
    for seed in range(2):
        for answer in CircuitReuse.known_answers(torch.Generator().manual_seed(seed)):
            assert answer.error() <= answer.tolerance, answer.what


def test_pitfall_direct_effects_hold_the_others_at_clean_and_not_at_zero():
    """Against path patching by full passes, on a model in which everything acts on everything."""
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(config).double().eval()
    draw = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(40, (3, 8), generator=draw) for _ in range(2))
    right, wrong = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    nothing = torch.zeros_like(clean, dtype=torch.bool)
    prompts = CircuitPrompts(clean, corrupt, right, wrong, torch.stack([right, wrong], 1), nothing)
    found = direct_effects(model, prompts).values
    patching = Patching(model, PromptPair(clean, corrupt), logit_difference(right, wrong))
    apart, base = (patching.clean - patching.corrupt).mean(), patching.clean.mean()
    expected = patching.path(freeze_mlps=True).values * apart / base.abs()
    assert (found - expected).abs().max() < 1e-6
    assert writes_against(model, prompts).values.shape == (2, 4)


def test_pitfall_pairs_stand_token_by_token_and_words_are_single_tokens(tokenizer):
    assert single_tokens(tokenizer, NAMES) == list(NAMES[:12])
    prompts = indirect_objects(tokenizer, 20, generator=torch.Generator().manual_seed(0))
    assert prompts.clean.shape == prompts.corrupt.shape
    for clean, corrupt, right, wrong in zip(prompts.clean, prompts.corrupt, prompts.right, prompts.wrong):
        differ = (clean != corrupt).nonzero().flatten()
        assert len(differ) == 1
        assert clean[differ] == wrong and corrupt[differ] == right
        assert int((clean == right).sum()) == 1 and int((clean == wrong).sum()) == 2


def test_coloured_objects_ask_for_one_of_the_list(tokenizer):
    prompts = coloured_objects(tokenizer, 20, generator=torch.Generator().manual_seed(1))
    assert len(prompts.clean) >= 5 and prompts.options.shape[1] == 3
    for row in range(len(prompts.clean)):
        text = "".join(tokenizer.convert_ids_to_tokens(prompts.clean[row].tolist())).replace("Ġ", " ")
        last = text.replace("Ċ", "\n").split("Q: ")[-1]
        asked = last.split("What color is the ")[1].split("?")[0]
        colour = tokenizer.convert_ids_to_tokens(int(prompts.right[row]))[1:]
        assert f"a {colour} {asked}" in last
        places = prompts.wrong_places[row].nonzero().flatten()
        assert sorted(prompts.clean[row, places].tolist()) == sorted(prompts.options[row, 1:].tolist())
        assert (prompts.clean[row] != prompts.corrupt[row]).sum() == 1


def test_overlap_of_circuits_takes_effects_of_either_sign():
    first = HeadMap(torch.tensor([[0.9, -0.8, 0.1], [0.0, 0.2, -0.05]]))
    second = HeadMap(torch.tensor([[-0.9, 0.0, 0.1], [0.0, 0.8, -0.05]]))
    lens = CircuitReuse(size=2)
    assert lens.circuit(first) == [(0, 0), (0, 1)]
    assert lens.overlap(first, second).shared == 1
    assert lens.overlap(first, first).share == 1.0
    for quantile in (0.5, 0.9, 0.99):
        assert Overlap(0, 15, 270).chance(quantile) == hypergeom.ppf(quantile, 270, 15, 15)
    with pytest.raises(ValueError, match="size is 0"):
        CircuitReuse(size=0)
