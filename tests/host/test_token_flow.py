"""Tokens dropped and added between blocks: as if deeper blocks could not see them, cache or no cache."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.edit import Edit
from regardant.host.seam import Seam
from regardant.world.families import FAMILIES, PAD

pytestmark = pytest.mark.filterwarnings("ignore")
DROPPED = (2, 5, 6)


@dataclass
class Drop(Edit):
    """Drops some places of the prompt behind layer `behind`."""

    behind: int = 1
    dropped: tuple[int, ...] = DROPPED

    def touches(self, site):
        return super().touches(site) and site.layer == self.behind

    def keep(self, stream, site, run):
        if run.past:
            return None
        kept = [at for at in range(stream.shape[1]) if at not in self.dropped]
        return torch.tensor(kept).expand(len(stream), -1)


@dataclass
class Hide(Edit):
    """The same by a mask: deeper layers do not see these keys."""

    behind: int = 1

    def touches(self, site):
        return super().touches(site) and site.layer > self.behind

    def logits(self, logits, site, run):
        logits = logits.clone()
        logits[..., list(DROPPED)] = torch.finfo(logits.dtype).min / 4
        return logits


@dataclass
class Join(Edit):
    """Two states before all others behind layer 1."""

    strength: float = 1.0

    def touches(self, site):
        return super().touches(site) and site.layer == 1

    def inject(self, stream, site, run):
        if run.past:
            return None
        generator = torch.Generator().manual_seed(3)
        return self.strength * torch.randn(1, 2, stream.shape[-1], generator=generator).expand(
            len(stream), -1, -1
        )


def step_by_step(model, ids, prompt):
    scores, cache = [], None
    for start, stop in [(0, prompt), *((at, at + 1) for at in range(prompt, ids.shape[1]))]:
        output = model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        scores.append(output.logits)
    return torch.cat(scores, dim=1), cache


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "bert", "vit"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropping_nothing_changes_no_bit(name, attention):
    family = FAMILIES[name]
    model, inputs = family.make(attention=attention), family.inputs()
    expected = family.logits(model(**inputs))
    with apply(model, Drop(dropped=())) as applied:
        assert torch.equal(family.logits(model(**inputs)), expected)
    assert applied.fired(applied.edits[0])["keep"] == 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "bert"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropped_tokens_are_as_if_hidden_from_deeper_layers(name, attention):
    family = FAMILIES[name]
    model, inputs = family.make(attention=attention), family.inputs()
    kept = [at for at in range(12) if at not in DROPPED]
    with apply(model, Hide()):
        expected = family.logits(model(**inputs))[:, kept]
    with apply(model, Drop()):
        found = family.logits(model(**inputs))
    assert found.shape[1] == 12
    torch.testing.assert_close(found[:, kept], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_behind_caches_of_different_lengths(name):
    family = FAMILIES[name]
    model, ids = family.make(), family.inputs(length=14)["input_ids"]
    with apply(model, Hide()):
        expected, _ = step_by_step(model, ids, 10)
    with apply(model, Drop()):
        found, cache = step_by_step(model, ids, 10)
    torch.testing.assert_close(found[:, 10:], expected[:, 10:], atol=2e-5, rtol=1e-4)
    assert [cache.layers[layer].get_seq_length() for layer in range(4)] == [14, 14, 11, 11]


def test_padding_and_beams():
    family = FAMILIES["llama"]
    model, ids = family.make(), family.inputs(length=10)["input_ids"]
    ids[0, :2] = PAD
    real = (ids != PAD).long()
    settings = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, num_beams=3, output_logits=True,
                    return_dict_in_generate=True)  # fmt: skip
    with apply(model, Hide()):
        expected = model.generate(input_ids=ids, attention_mask=real, **settings)
    with apply(model, Drop()):
        found = model.generate(input_ids=ids, attention_mask=real, **settings)
    assert torch.equal(found.sequences, expected.sequences)


def test_a_token_that_is_dropped_leaves_with_the_state_that_it_had():
    family = FAMILIES["llama"]
    model, inputs = family.make(), family.inputs()
    states = model(**inputs, output_hidden_states=True).hidden_states
    with apply(model, Drop()):
        seam, last = Seam.of(model), {}
        handle = model.model.norm.register_forward_pre_hook(lambda module, args: last.update(stream=args[0]))
        model(**inputs)
        handle.remove()
    assert seam is not None
    torch.testing.assert_close(last["stream"][:, list(DROPPED)], states[2][:, list(DROPPED)])


def test_injected_states_are_seen_by_all_and_leave_no_row():
    family = FAMILIES["llama"]
    model, inputs = family.make(), family.inputs(length=14)
    plain = model(**inputs).logits
    with apply(model, Join()) as applied:
        whole = model(**inputs).logits
        parts, cache = step_by_step(model, inputs["input_ids"], 10)
    assert whole.shape == plain.shape and (whole - plain).abs().amax(dim=(0, 2)).min() > 1e-4
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=1e-4)
    assert [cache.layers[layer].get_seq_length() for layer in range(4)] == [14, 14, 16, 16]
    assert applied.fired(applied.edits[0])["inject"] == 2


def test_dropping_behind_an_injection():
    family = FAMILIES["llama"]
    model, ids = family.make(), family.inputs(length=14)["input_ids"]
    with apply(model, Join(), Drop(behind=2)):
        parts, cache = step_by_step(model, ids, 10)
    assert [cache.layers[layer].get_seq_length() for layer in range(4)] == [14, 14, 16, 13]
    assert torch.isfinite(parts).all()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (torch.tensor([[0, 0], [0, 1]]), "one of them twice"),
        (torch.tensor([[0, 40], [0, 1]]), "outside of 0 to 11"),
        (torch.tensor([0, 1]), "int64"),
    ],
)
def test_places_that_cannot_be(wrong, sentence):
    class Wrong(Drop):
        def keep(self, stream, site, run):
            return wrong

    family = FAMILIES["llama"]
    model = family.make()
    with pytest.raises(ValueError, match=sentence), apply(model, Wrong()):
        model(**family.inputs())


def test_a_static_cache_is_refused_in_a_sentence():
    family = FAMILIES["llama"]
    model, inputs = family.make(), family.inputs()
    inputs["attention_mask"][0, :3] = 0
    with pytest.raises(ValueError, match="use a dynamic cache"), apply(model, Drop()):
        model.generate(**inputs, max_new_tokens=2, do_sample=False, cache_implementation="static")
