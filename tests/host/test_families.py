"""Every architecture through the seam: nothing asked, nothing changed; on exit all is as before; what edits
see is the same with and without caches and padding; and nothing looks into the future."""

from __future__ import annotations

import copy

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.language.temp_scale import TempScale
from regardant.host.host import host_of
from regardant.world.families import FAMILIES, PAD
from tests.host.edits import HeadsOff, Peeking, Pushed, Raises, Sharper, Written

SEAMED = [name for name in FAMILIES if name != "deberta"]
WRITING = [name for name, family in FAMILIES.items() if family.reads == "text"]
"""Decoders that read text alone: prompts of their own can be padded."""
CONTINUING = [name for name, family in FAMILIES.items() if family.causal]
BY_HAND = [name for name in CONTINUING if name not in ("bamba", "qwen2-vl")]
"""Decoders that can be fed token by token without what `generate` prepares; the others generate, below."""
GIVEN = [name for name in BY_HAND if FAMILIES[name].static and not FAMILIES[name].across]
"""Those that take a static cache from the caller; of the others `generate` makes it."""
ROUND = 1e-5

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def everywhere(model, edit):
    """The edit, and where the model has cross-attention the same there."""
    across = any(site.cross for site in host_of(model).sites)
    return [type(edit)(cross=cross) for cross in ((False, True) if across else (False,))]


def logits_of(family, model, inputs):
    return family.logits(model(**inputs))


@pytest.mark.parametrize("name", SEAMED)
def test_written_out_equals_the_librarys_own_eager_attention(name):
    family = FAMILIES[name]
    eager, fused = family.make(attention="eager"), family.make()
    inputs = family.inputs()
    expected = logits_of(family, eager, inputs)
    with apply(eager, *everywhere(eager, Written())) as applied:
        assert torch.equal(logits_of(family, eager, inputs), expected)
    assert {how for _, how in applied.calls} == {"written"}
    with apply(fused, *everywhere(fused, Written())):
        torch.testing.assert_close(logits_of(family, fused, inputs), expected, atol=ROUND, rtol=ROUND)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SEAMED)
def test_zero_strength_and_reading_heads_are_bit_for_bit(name, attention):
    family = FAMILIES[name]
    model = family.make(attention=attention)
    inputs = family.inputs()
    expected = logits_of(family, model, inputs)
    with apply(model, TempScale(temperature=1.0)) as applied:
        assert torch.equal(logits_of(family, model, inputs), expected)
    assert {how for _, how in applied.calls} == {"fused"}
    with apply(model, Raises(after=10**9)) as applied:
        assert torch.equal(logits_of(family, model, inputs), expected)
    assert {how for _, how in applied.calls} == {"fused"}


def picture(model):
    """All that an edit might leave behind: attributes, hooks, and where the configs point."""
    return {
        name: (
            type(module),
            sorted(vars(module)),
            {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")},
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("name", SEAMED)
def test_on_exit_the_model_is_what_it_was(name):
    family = FAMILIES[name]
    model = family.make()
    inputs = family.inputs()
    # The library adds hooks of its own in a model's first pass.
    before, expected = (logits_of(family, model, inputs), picture(model))[::-1]
    config = copy.deepcopy(model.config.to_dict())
    for edits in ([Sharper()], [HeadsOff(), Pushed()], [Sharper(), TempScale(0.5)]):
        with apply(model, *edits):
            assert not torch.equal(logits_of(family, model, inputs), expected)
        assert picture(model) == before and model.config.to_dict() == config
        assert torch.equal(logits_of(family, model, inputs), expected)
    with pytest.raises(RuntimeError, match="in the middle"), apply(model, Raises(after=1), Pushed()):
        logits_of(family, model, inputs)
    assert picture(model) == before and model.config.to_dict() == config
    assert torch.equal(logits_of(family, model, inputs), expected)


@pytest.mark.parametrize("name", SEAMED)
def test_a_factor_on_the_fused_path_equals_the_same_written_out(name):
    family = FAMILIES[name]
    model = family.make()
    inputs = family.inputs()
    with apply(model, Sharper()):
        expected = logits_of(family, model, inputs)
    with apply(model, TempScale(0.5)) as applied:
        found = logits_of(family, model, inputs)
    assert {how for _, how in applied.calls} == {"fused"}
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


def split(family, inputs):
    """The part that a decoder reads, and the name that it goes by."""
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    return name, inputs[name]


def decode(family, model, inputs, *, prompt, static=False):
    """The scores of every token from the end of the prompt on, one pass a token, by a cache."""
    from transformers import StaticCache

    name, ids = split(family, inputs)
    rest = {
        key: value
        for key, value in inputs.items()
        if key not in (name, "attention_mask", "mm_token_type_ids")
    }
    real = inputs.get("attention_mask")
    across = name == "decoder_input_ids"
    cache = None
    if static:
        cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=ids.shape[1] + 3)
    scores = []
    for start, stop in [(0, prompt), *((at, at + 1) for at in range(prompt, ids.shape[1]))]:
        given = {name: ids[:, start:stop], "past_key_values": cache, "use_cache": True}
        if across:
            given |= rest | ({} if real is None else {"attention_mask": real})
        else:
            given |= rest if start == 0 else {}
            given |= {} if real is None else {"attention_mask": real[:, :stop]}
        output = model(**given)
        cache = output.past_key_values
        scores.append(output.logits)
    return torch.cat(scores, dim=1)


@pytest.mark.parametrize(
    "edit", [Sharper(), HeadsOff(), TempScale(0.5)], ids=lambda edit: type(edit).__name__
)
@pytest.mark.parametrize(("name", "static"), [(n, False) for n in BY_HAND] + [(n, True) for n in GIVEN])
def test_with_a_cache_as_without(name, static, edit):
    family = FAMILIES[name]
    model = family.make()
    inputs = family.inputs()
    _, ids = split(family, inputs)
    with apply(model, edit):
        whole = logits_of(family, model, inputs)
        parts = decode(family, model, inputs, prompt=ids.shape[1] - 4, static=static)
    torch.testing.assert_close(parts, whole, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONTINUING)
@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
def test_generation_is_the_same_with_every_cache(name, cache):
    family = FAMILIES[name]
    if cache == "static" and not family.static:
        pytest.skip("this architecture has no static cache")
    model = family.make()
    inputs = {key: value for key, value in family.inputs().items() if key != "decoder_input_ids"}
    settings = dict(max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with apply(model, Sharper(), HeadsOff()):
        expected = model.generate(**inputs, **settings, use_cache=False)
        given = {"none": dict(use_cache=False), "dynamic": {}, "static": dict(cache_implementation="static")}[
            cache
        ]
        found = model.generate(**inputs, **settings, **given)
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.logits, expected.logits):
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", WRITING)
def test_padding_on_either_side_changes_nothing(name):
    family = FAMILIES[name]
    model = family.make()
    long = family.inputs(batch=1, length=12)["input_ids"]
    short = family.inputs(batch=1, length=8, seed=1)["input_ids"]
    for edit in (Sharper(), HeadsOff(), TempScale(0.5)):
        with apply(model, edit):
            alone = [model(input_ids=ids).logits[0] for ids in (long, short)]
            for side in ("left", "right"):
                if name == "bamba" and side == "right":
                    continue  # its recurrent layers read what stands behind
                empty = torch.full((1, 4), PAD)
                padded = torch.cat([empty, short] if side == "left" else [short, empty], dim=1)
                ids = torch.cat([long, padded])
                real = (ids != PAD).long()
                places = (real.cumsum(1) - 1).clamp(min=0)
                both = model(input_ids=ids, attention_mask=real, position_ids=places).logits
                torch.testing.assert_close(both[0], alone[0], atol=5e-5, rtol=1e-4)
                torch.testing.assert_close(both[1][real[1].bool()], alone[1], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONTINUING)
@pytest.mark.parametrize("setting", ["whole", "dynamic", "static", "padded"])
def test_no_past_moves_when_the_future_changes(name, setting):
    family = FAMILIES[name]
    if name not in {"whole": CONTINUING, "padded": WRITING, "dynamic": BY_HAND, "static": GIVEN}[setting]:
        pytest.skip("no such pass that is made by hand")
    model = family.make()
    inputs = family.inputs()
    key, ids = split(family, inputs)
    cut = ids.shape[1] - 3
    changed = dict(inputs)
    changed[key] = torch.cat([ids[:, :cut], 5 + (ids[:, cut:] + 7) % 70], dim=1)
    if setting == "padded":
        real = torch.ones_like(ids)
        real[0, :4] = 0
        inputs["attention_mask"] = changed["attention_mask"] = real

    def scores(given):
        if setting in ("dynamic", "static"):
            return decode(family, model, given, prompt=cut, static=setting == "static")
        return logits_of(family, model, given)

    for edit in (Sharper(), HeadsOff(), TempScale(0.5)):
        with apply(model, edit):
            first, second = scores(inputs)[1:, :cut], scores(changed)[1:, :cut]
        torch.testing.assert_close(first, second, atol=ROUND, rtol=ROUND)
    if setting == "whole":
        with apply(model, Peeking()):
            assert (logits_of(family, model, inputs) - logits_of(family, model, changed))[
                :, :cut
            ].abs().max() > 1e-3


def test_deberta_computes_its_own_attention_and_is_refused_by_name():
    with pytest.raises(ValueError, match=r"DebertaV2Attention at deberta\.encoder\.layer\.0\.attention"):
        apply(FAMILIES["deberta"].make(attention="eager"), Sharper())
