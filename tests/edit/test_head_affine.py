"""Scales and offsets of heads: at work, through gradients, and folded into weights and out again."""

from __future__ import annotations

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.head_affine import HeadAffine
from regardant.world.families import FAMILIES

WAVE = torch.linspace(-1, 1, 16)


def setting():
    return HeadAffine(scales={(1, 0): WAVE, (1, 3): -WAVE}, offsets={(1, 0): WAVE.cos(), (-1, 2): 2 * WAVE})


def logits(family, model):
    with torch.no_grad():
        return family.logits(model(**family.inputs()))


def test_heads_are_scaled_then_moved():
    model, seen = FAMILIES["llama"].make(), {}
    projection = model.model.layers[1].self_attn.o_proj
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        handle = projection.register_forward_pre_hook(lambda module, args: seen.update(plain=args[0]))
        model(ids)
        handle.remove()
        with apply(model, setting()):
            handle = projection.register_forward_pre_hook(lambda module, args: seen.update(edited=args[0]))
            model(ids)
            handle.remove()
    plain, edited = (seen[name].unflatten(-1, (4, 16)) for name in ("plain", "edited"))
    torch.testing.assert_close(edited[:, :, 0], plain[:, :, 0] * (1 + WAVE) + WAVE.cos())
    torch.testing.assert_close(edited[:, :, 3], plain[:, :, 3] * (1 - WAVE))
    assert torch.equal(edited[:, :, 1:3], plain[:, :, 1:3])


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "bert", "vit", "gpt-neox"])
def test_folded_the_model_gives_what_it_gives_under_the_edit_and_undone_what_it_gave(name):
    family = FAMILIES[name]
    model = family.make()
    if name == "vit":
        edit = HeadAffine(scales={(1, 0): WAVE, (1, 3): -WAVE}, offsets={(1, 0): WAVE.cos()})
    else:
        edit = setting()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = logits(family, model)
    with apply(model, edit):
        expected = logits(family, model)
    with edit.fold(model):
        torch.testing.assert_close(logits(family, model), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(logits(family, model), plain, atol=1e-3)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(logits(family, model), plain)


def test_pitfall_a_missing_bias_is_made_and_taken_away():
    model = FAMILIES["llama"].make()
    projection = model.model.layers[1].self_attn.o_proj
    assert projection.bias is None
    folded = setting().fold(model)
    assert projection.bias is not None and model.model.layers[0].self_attn.o_proj.bias is None
    plain = FAMILIES["llama"].make().model.layers[1].self_attn.o_proj.weight[:, :16]
    torch.testing.assert_close(projection.bias, plain @ WAVE.cos())
    torch.testing.assert_close(projection.weight[:, :16], plain * (1 + WAVE))
    folded.undo()
    assert projection.bias is None and "bias" in projection._parameters


def test_pitfall_the_offset_acts_on_prompt_and_generated_tokens_alike():
    model = FAMILIES["llama"].make()
    ids = torch.arange(5, 13)[None]
    with apply(model, setting()):
        written = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
        again = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(written, again)
    with setting().fold(model):
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), written)


def test_gradients_reach_the_vectors():
    model = FAMILIES["llama"].make().requires_grad_(False)
    scale, offset = torch.zeros(16, requires_grad=True), torch.zeros(16, requires_grad=True)
    ids = torch.arange(5, 13)[None]
    with apply(model, HeadAffine(scales={(2, 1): scale}, offsets={(0, 3): offset})):
        loss = model(ids, labels=ids).loss
    loss.backward()
    step = 1e-2
    for vector, make in (
        (scale, lambda moved: HeadAffine(scales={(2, 1): moved})),
        (offset, lambda moved: HeadAffine(offsets={(0, 3): moved})),
    ):
        direction = vector.grad / vector.grad.norm()
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                with apply(model, make(sign * step * direction)):
                    ends.append(model(ids, labels=ids).loss)
        assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(float(vector.grad.norm()), rel=2e-2)


def test_what_does_not_fit_is_refused():
    model = FAMILIES["llama"].make()
    for edit, sentence in (
        (
            HeadAffine(scales={(1, 4): WAVE}),
            "scales has head 4 in layer 1 of main, which has query heads 0 to 3",
        ),
        (HeadAffine(offsets={(0, 0): WAVE[:3]}), "has 3 numbers, but the head gives 16"),
        (HeadAffine(offsets={(7, 0): WAVE}), "layers holds 7"),
        (HeadAffine(scales={(3, 0): WAVE, (-1, 0): WAVE}), "scales names head 0 in layer 3 of main twice"),
    ):
        with pytest.raises(ValueError, match=sentence):
            apply(model, edit)
    with pytest.raises(ValueError, match="scales holds 3, but"):
        HeadAffine(scales={3: WAVE})
    edit = setting()
    with apply(model, edit):
        with pytest.raises(ValueError, match="at work on the model"):
            edit.fold(model)
        model(torch.arange(5, 9)[None])
