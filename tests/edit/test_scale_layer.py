import pytest
import torch
from transformers import LlamaForCausalLM

import regardant
from regardant.edit.scale_layer import ScaleLayer
from tests.edit.small_llama import IDS, small_llama


@pytest.fixture
def model():
    return small_llama(layers=4)


@pytest.mark.parametrize("by", [0.0, 0.3, 2.0])
def test_the_last_layer_adds_so_much_of_what_it_added(model, by):
    seen = {}
    handles = [
        model.model.layers[layer].register_forward_hook(
            lambda m, a, out, layer=layer: seen.update({layer: out if torch.is_tensor(out) else out[0]})
        )
        for layer in (2, 3)
    ]
    with torch.no_grad():
        model(IDS)
        expected = model.lm_head(model.model.norm(seen[2] + by * (seen[3] - seen[2])))
        for handle in handles:
            handle.remove()
        with regardant.apply(model, ScaleLayer(by=by)):
            found = model(IDS).logits
    assert (found - expected).abs().max() < 1e-9


def test_a_layer_scaled_to_nothing_is_a_model_without_it(model):
    with torch.no_grad(), regardant.apply(model, ScaleLayer(layer=1, by=0.0)):
        found = model(IDS).logits
    without = LlamaForCausalLM(model.config).double().eval()
    without.load_state_dict(model.state_dict())
    del without.model.layers[1]
    with torch.no_grad():
        assert (without(IDS, use_cache=False).logits - found).abs().max() < 1e-9


def test_decoding_scales_every_pass(model):
    settings = dict(do_sample=False, max_new_tokens=5, min_new_tokens=5, pad_token_id=0)
    with regardant.apply(model, ScaleLayer(by=0.2)):
        cached, plain = (model.generate(IDS, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(layer=0), "layer is 0"),
        (dict(layer=9), "layers holds"),
        (dict(by=-1), "by is -1"),
        (dict(layers=[1]), "this edit is about one"),
    ],
)
def test_bad_settings_are_refused(model, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        regardant.apply(model, ScaleLayer(**settings))
