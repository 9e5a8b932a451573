import pytest
import torch
from transformers import LlamaForCausalLM

import regardant
from regardant.edit.mask_heads import MaskHeads
from tests.edit.small_llama import IDS, small_llama


@pytest.fixture
def model():
    return small_llama(layers=4)


def without_columns(model, chosen, strength=1.0):
    """The same, done to the output projection's own weight."""
    changed = LlamaForCausalLM(model.config).double().eval()
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer, head in chosen:
            changed.model.layers[layer].self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] *= 1 - strength
        return changed(IDS).logits


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_masking_is_what_the_output_projection_would_not_read(model, strength):
    chosen = [(0, 1), (2, 3), (2, 0)]
    with torch.no_grad(), regardant.apply(model, MaskHeads(chosen=chosen, strength=strength)) as applied:
        found = model(IDS).logits
    assert (found - without_columns(model, chosen, strength)).abs().max() < 1e-9
    assert {how for _, how in applied.calls} == {"fused"}


def test_pitfall_query_heads_that_share_keys_are_masked_apart(model):
    """Heads 0 and 1 read the same keys and values: masking one leaves the other as it was."""
    with torch.no_grad(), regardant.apply(model, MaskHeads(chosen={1: [0]})):
        one = model(IDS).logits
    assert (one - without_columns(model, [(1, 0)])).abs().max() < 1e-9
    assert (one - without_columns(model, [(1, 0), (1, 1)])).abs().max() > 1e-6


def test_layers_count_from_the_end_as_well(model):
    with torch.no_grad(), regardant.apply(model, MaskHeads(chosen={-1: [2]})):
        found = model(IDS).logits
    assert (found - without_columns(model, [(3, 2)])).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(chosen=[]), "chosen is empty"),
        (dict(chosen=[(1, 4)]), "chosen has head 4 in layer 1 of main, which has query heads 0 to 3"),
        (dict(chosen=[(9, 0)]), "layers holds 9"),
        (dict(chosen=[(1, 0)], strength=2), "strength is 2"),
        (dict(chosen=[(1, 0)], layers=[1]), "chosen already says"),
    ],
)
def test_bad_settings_are_refused_early(model, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        regardant.apply(model, MaskHeads(**settings))
