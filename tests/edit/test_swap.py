"""Rules of ours in the place of a pretrained model's attention: the same numbers where they must be the same,
in all settings of a host, as parts of the model, and back."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_model, save_model

import regardant
from regardant.core.mixer import MultiHead
from regardant.edit.apply import apply
from regardant.edit.swap import FROM_STATE, WHOLE
from regardant.sequence.abc import ABC
from regardant.world.families import FAMILIES, PAD
from tests.host.edits import HeadsOff, Sharper

CLOSE = dict(atol=2e-5, rtol=1e-4)
CAUSAL = [name for name, why in regardant.swappable(causal=True).items() if why is None]
SMALL = {
    "local-attention": dict(window=4), "combiner-axial": dict(segment=4), "combiner-fixed": dict(segment=4),
    "landmark-attention": dict(block=3), "sliding-window": dict(window=4), "sinklora": dict(group=4, sinks=1),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_gradients():
    with torch.no_grad():
        yield


def llama(**settings):
    return FAMILIES["llama"].make(**settings)


def ids_of(seed=0, length=12, batch=2):
    return torch.randint(5, 80, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_softmax_swapped_in_is_the_models_own_attention(family):
    family = FAMILIES[family]
    model = family.make()
    inputs = family.inputs()
    expected = family.logits(model(**inputs))
    with regardant.swap(model, "softmax") as swapped:
        found = family.logits(model(**inputs))
        assert len(swapped.layers) == len(swapped.sites)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert torch.equal(family.logits(model(**inputs)), expected)


def test_only_the_chosen_layers_are_swapped():
    model, ids = llama(), ids_of()
    own = model(ids).logits
    swapped = regardant.swap(model, "performer", layers=[1, -1])
    assert [site.layer for site in swapped.sites] == [1, 3]
    assert not torch.allclose(model(ids).logits, own, atol=1e-3)
    swapped.back()
    assert torch.equal(model(ids).logits, own)


@pytest.mark.parametrize("name", CAUSAL)
def test_every_system_looks_at_no_later_token_and_goes_on_with_the_cache(name):
    model, ids = llama(), ids_of()
    with regardant.swap(model, name, **SMALL.get(name, {})):
        whole = model(ids).logits
        other = model(torch.cat([ids[:, :8], ids.flip(1)[:, 8:]], dim=1)).logits
        torch.testing.assert_close(whole[:, :8], other[:, :8], **CLOSE)
        prompt = model(ids[:, :9], use_cache=True)
        cache, parts = prompt.past_key_values, [prompt.logits]
        for at in range(9, 12):
            step = model(ids[:, at : at + 1], past_key_values=cache)
            cache = step.past_key_values
            parts.append(step.logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_text_is_the_text_alone(name, side):
    model = llama()
    long, short = ids_of(batch=1), ids_of(1, 7, batch=1)
    empty = torch.full((1, 5), PAD)
    padded = torch.cat([empty, short] if side == "left" else [short, empty], dim=1)
    real = torch.cat([long, padded]) != PAD
    places = (real.long().cumsum(1) - 1).clamp(min=0)
    with regardant.swap(model, name, layers=[0, 2], **SMALL.get(name, {})):
        alone = model(short).logits[0]
        both = model(torch.cat([long, padded]), attention_mask=real.long(), position_ids=places).logits
        torch.testing.assert_close(both[1][real[1]], alone, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(both[0], model(long).logits[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["softmax", "abc", "flowformer", "local-attention", "cosformer"])
def test_generation_is_the_same_with_every_cache_padding_and_beams(name):
    model = llama()
    long, short = ids_of(batch=1), ids_of(1, 7, batch=1)
    ids = torch.cat([long, torch.cat([torch.full((1, 5), PAD), short], dim=1)])
    given = dict(
        input_ids=ids, attention_mask=(ids != PAD).long(), max_new_tokens=6, do_sample=False, pad_token_id=PAD
    )
    with regardant.swap(model, name, **SMALL.get(name, {})):
        expected = model.generate(**given, use_cache=False)
        assert torch.equal(model.generate(**given), expected)
        assert torch.equal(model.generate(**given, cache_implementation="static"), expected)
        alone = model.generate(short, max_new_tokens=6, do_sample=False, pad_token_id=PAD)
        assert torch.equal(alone[0, 7:], expected[1, 12 : 12 + alone.shape[1] - 7])
        beams = model.generate(**given, num_beams=3, use_cache=False)
        assert torch.equal(model.generate(**given, num_beams=3), beams)


def test_how_rules_decode_is_found_out_and_told():
    model = llama()
    for name, how in (
        ("softmax", FROM_STATE),
        ("abc", FROM_STATE),
        ("flowformer", WHOLE),
        ("combiner-axial", WHOLE),
    ):
        with regardant.swap(model, name) as swapped:
            assert set(swapped.decoding.values()) == {how}, name


def test_key_heads_are_shared_where_the_rule_can_and_repeated_where_not():
    model = llama()
    with regardant.swap(model, "softplus-attention-lssa") as swapped:
        assert {layer.kv_heads for layer in swapped.layers.values()} == {2}
    with regardant.swap(model, "abc") as swapped:
        assert {layer.kv_heads for layer in swapped.layers.values()} == {4}
        layer, site = next(iter(swapped.layers.values())), swapped.sites[0]
        q, k, v = torch.randn(1, 4, 9, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
        call = regardant.host.call.Call(site, q, k, v, None, 16**-0.5, causal=True, fused=None)
        repeated = [each.repeat_interleave(2, dim=1) for each in (k, v)]
        expected = layer.rule.reference(q, *repeated, pattern=regardant.Causal())
        torch.testing.assert_close(swapped.heads(call), expected, **CLOSE)


def test_the_hosts_own_scaling_is_kept():
    model, ids = llama(), ids_of()
    for site in model.model.layers:
        site.self_attn.scaling = 0.37
    expected = model(ids).logits
    with regardant.swap(model, "softmax"):
        torch.testing.assert_close(model(ids).logits, expected, **CLOSE)


def test_parameters_are_a_part_of_the_model_saved_loaded_and_trained(tmp_path):
    model, ids = llama(), ids_of()
    swapped = regardant.swap(model, "abc", layers=[1, 2], slots=4)
    names = [name for name, _ in model.named_parameters() if ".swapped." in name]
    assert names == [f"model.layers.{i}.self_attn.swapped.rule.control" for i in (1, 2)]
    assert len(swapped.parameters()) == 2
    before = swapped.parameters()[0].clone()
    with torch.enable_grad():
        model(ids, labels=ids).loss.backward()
        torch.optim.SGD(swapped.parameters(), lr=1.0).step()
    assert not torch.equal(before, swapped.parameters()[0])
    model.zero_grad()
    save_model(model, str(tmp_path / "swapped.safetensors"))
    other = llama(seed=1)
    regardant.swap(other, "abc", layers=[1, 2], slots=4)
    load_model(other, str(tmp_path / "swapped.safetensors"))
    assert torch.equal(other(ids).logits, model(ids).logits)


def test_swaps_lie_side_by_side_and_go_in_any_order():
    model, ids = llama(), ids_of()
    own = model(ids).logits
    first = regardant.swap(model, "abc", layers=[0])
    alone = model(ids).logits
    second = regardant.swap(model, "softmax", layers=[3])
    torch.testing.assert_close(model(ids).logits, alone, **CLOSE)
    first.back()
    torch.testing.assert_close(model(ids).logits, own, **CLOSE)
    second.back()
    assert torch.equal(model(ids).logits, own)
    assert not any(key.startswith("_regardant") for module in model.modules() for key in vars(module))


def test_edits_act_on_a_swapped_model_and_conflicts_are_refused():
    model, ids = llama(), ids_of()
    with regardant.swap(model, "abc", layers=[0, 1]) as swapped:
        plain = model(ids).logits
        with apply(model, HeadsOff()):
            assert not torch.allclose(model(ids).logits, plain, atol=1e-3)
            with pytest.raises(ValueError, match="HeadsOff is at work on the model"):
                swapped.back()
        assert torch.equal(model(ids).logits, plain)
        with pytest.raises(ValueError, match="replaces the attention of layer 0 of main"):
            apply(model, Sharper())
        with pytest.raises(ValueError, match="swapped already"):
            regardant.swap(model, "softmax", layers=[1])
    with pytest.raises(ValueError, match="own attention already"):
        swapped.back()


def test_going_back_early_is_going_back():
    model, ids = llama(), ids_of()
    own = model(ids).logits
    with regardant.swap(model, "abc") as swapped:
        swapped.back()
        assert torch.equal(model(ids).logits, own)
    assert swapped.layers and not swapped.sites


def test_aside_the_model_has_its_own_attention():
    model, ids = llama(), ids_of()
    own = model(ids).logits
    with regardant.swap(model, "abc") as swapped:
        other = model(ids).logits
        with swapped.aside():
            assert torch.equal(model(ids).logits, own)
        assert torch.equal(model(ids).logits, other)


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("moh", {}, "MoH puts heads together in its own way"),
        ("rg-lru", {}, "no rule between queries, keys and values"),
        ("nystromformer", {}, "Nystromformer has no causal self-attention"),
        ("softmax", dict(position="alibi"), "positions are the host's"),
        ("softmax", dict(layers=[9]), "layers holds 9, but the attention layers here are 0 to 3"),
        ("abc", dict(slotts=3), "takes no 'slotts'"),
        ("abc", dict(slots=0), "slots is 0"),
        ("abd", {}, "no system is called 'abd'"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(name, config, sentence):
    model = llama()
    with pytest.raises(ValueError, match=sentence):
        regardant.swap(model, name, **config)
    assert not any(key.startswith("_regardant") for module in model.modules() for key in vars(module))


class Gazing(MultiHead):
    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        return self.rule(q * x.mean(), k, v, pattern=pattern)


class Narrow(MultiHead):
    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        return self.rule(q, k, v[..., :8], pattern=pattern)


def test_a_rule_that_looks_at_the_input_or_whose_heads_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="looks at the layer's input x"):
        regardant.swap(llama(), Gazing)
    with pytest.raises(ValueError, match="its heads do not fit"):
        regardant.swap(llama(), Narrow)
    regardant.swap(llama(), ABC, slots=3).back()


def test_masks_that_are_neither_causal_nor_padding_are_refused():
    model = FAMILIES["mistral"].make(sliding_window=4)
    with (
        regardant.swap(model, "softmax"),
        pytest.raises(ValueError, match="hides more than later keys"),
    ):
        model(ids_of())
    model = FAMILIES["t5"].make()
    inputs = FAMILIES["t5"].inputs()
    with regardant.swap(model, "softmax", stack="encoder"), pytest.raises(ValueError, match="adds a bias"):
        model(**inputs)
    model = llama()
    holes = torch.ones(2, 12, dtype=torch.long)
    holes[1, 4] = 0
    with regardant.swap(model, "softmax"), pytest.raises(ValueError, match="lies between its tokens"):
        model(ids_of(), attention_mask=holes)


def test_a_cache_that_was_read_without_the_rule_is_refused_where_its_queries_are_needed():
    model, ids = llama(), ids_of()
    cache = model(ids[:, :9], use_cache=True).past_key_values
    with regardant.swap(model, "flowformer"), pytest.raises(ValueError, match="of which 0 were read"):
        model(ids[:, 9:10], past_key_values=cache)


def test_which_systems_can_be_swapped_is_computed():
    found = regardant.swappable()
    assert set(found) == set(regardant.names("sequence"))
    assert found["softmax"] is None and found["lara"] is None
    assert "own way" in found["gated-attention"]
    assert regardant.swappable(causal=True)["lara"] == (
        "causal=True with context_dim=None: Lara has no causal self-attention"
    )
    assert len(CAUSAL) >= 20
