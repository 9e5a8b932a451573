"""What an edit is told while a text is read and continued: steps, places, padding, beams, roles."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.edit import Edit
from regardant.host.roles import Roles
from regardant.host.run import Run
from regardant.world.families import FAMILIES, IMAGE, PAD
from tests.host.edits import Watching

pytestmark = pytest.mark.filterwarnings("ignore")


def test_steps_count_from_the_prompt_and_a_new_prompt_begins_anew():
    family = FAMILIES["llama"]
    model, inputs = family.make(), family.inputs(batch=1, length=6)
    watching = Watching()
    with apply(model, watching):
        for _ in range(2):
            model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert watching.seen == [(0, 0, 6), (1, 6, 7), (2, 7, 8)] * 2


@dataclass
class Sums(Edit):
    """Keeps, a sample, the sum of the first head's outputs: a state that must follow its beam."""

    told: list = field(default_factory=list)

    def heads(self, heads, site, run):
        if site.layer == 0:
            memory = run.memory(self, site)
            now = heads[:, 0].sum(dim=(1, 2))
            memory["sum"] = now + memory.get("sum", 0)
            self.told.append((run.length, memory["sum"].clone()))
        return heads


def test_what_is_kept_follows_the_beams():
    family = FAMILIES["llama"]
    model, inputs = family.make(), family.inputs(batch=1, length=6)
    sums = Sums()
    with apply(model, sums):
        found = model.generate(
            **inputs, max_new_tokens=6, min_new_tokens=6, num_beams=3, num_return_sequences=3, do_sample=False
        )
    length, last = sums.told[-1]
    # The same sum over each text that was a beam at the last pass, from scratch.
    fresh = Sums()
    with torch.no_grad(), apply(model, fresh):
        for text in found:
            model(input_ids=text[None, :length])
    from_scratch = torch.stack([value[0] for _, value in fresh.told])
    matched = [(last - value).abs().min() < 1e-3 for value in from_scratch]
    assert any(matched)


def test_padding_and_the_first_real_token():
    family = FAMILIES["llama"]
    model = family.make()
    ids = torch.tensor([[PAD, PAD, 7, 8, 9], [5, 6, 7, 8, 9]])
    told = {}

    class First(Edit):
        def heads(self, heads, site, run):
            told["first"], told["real"] = run.first_real(), run.real
            return heads

    with torch.no_grad(), apply(model, First()):
        model(input_ids=ids, attention_mask=(ids != PAD).long())
    assert told["first"].tolist() == [2, 0] and told["real"].tolist() == (ids != PAD).tolist()


def test_places_of_queries_and_keys_behind_a_sliding_cache():
    family = FAMILIES["mistral"]
    model, inputs = family.make(), family.inputs(batch=1, length=10)
    told = []

    class Places(Edit):
        def heads(self, heads, site, run):
            return heads

        def qkv(self, q, k, v, site, run):
            return q, k, v

        def logits(self, logits, site, run):
            if site.layer == 0:
                call = run.call
                rows, seen = call.places(), call.visible()[0, 0]
                told.append((call.first_key, rows.tolist(), [int(row.nonzero().max()) for row in seen]))
            return logits

    with apply(model, Places()):
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    for _, rows, last_seen in told:
        assert rows == last_seen  # a query's own place is the last that it sees
    assert told[-1][0] > 0  # the cache has dropped what the window has passed


class TestRoles:
    def test_of_ids_with_an_image_and_a_system_prompt(self):
        ids = torch.tensor([[PAD, 4, 5, IMAGE, IMAGE, 8], [4, 5, 9, IMAGE, 8, 8]])
        roles = Roles.of_ids(ids, image=IMAGE, system=[4, 5])
        assert roles.mask("image", 6).tolist() == (ids == IMAGE).tolist()
        assert roles.mask("system", 6)[0].nonzero().flatten().tolist() == [1, 2]
        assert roles.mask("system", 6)[1].nonzero().flatten().tolist() == [0, 1]
        assert not (roles.mask("prompt", 6) & (roles.mask("image", 6) | roles.mask("system", 6))).any()
        assert roles.mask("generated", 8).tolist() == [[False] * 6 + [True] * 2]
        assert not roles.mask("image", 8)[:, 6:].any()

    def test_beams_repeat_their_prompt(self):
        roles = Roles.of_ids(torch.tensor([[4, IMAGE], [IMAGE, 4]]), image=IMAGE)
        assert roles.mask("image", 2, batch=4).tolist() == [[False, True]] * 2 + [[True, False]] * 2
        with pytest.raises(ValueError, match="roles are of 2 prompts, but the model reads 3"):
            roles.mask("image", 2, batch=3)

    @pytest.mark.parametrize(
        ("make", "sentence"),
        [
            (lambda: Roles.of_ids(torch.tensor([[1, 2]]), image=9), "image token 9 is not in every prompt"),
            (
                lambda: Roles.of_ids(torch.tensor([[1, 2, 3]]), system=[2, 9]),
                "prompt 0 does not hold the 2 ids",
            ),
            (lambda: Roles({}), "spans is empty"),
            (lambda: Roles({"a": slice(0, 3), "b": slice(2, 4)}), "'b' is given to tokens that already have"),
            (lambda: Roles({"generated": slice(0, 3)}), "is what comes behind the prompt"),
            (lambda: Roles({"a": slice(0, None)}), "a slice without an end"),
            (lambda: Roles({"a": slice(0, 5)}, length=4), "reaches to place 5"),
            (lambda: Roles({"a": slice(0, 2)}).mask("b", 2), "no role is called 'b'"),
        ],
    )
    def test_what_cannot_be_told_is_said(self, make, sentence):
        with pytest.raises(ValueError, match=sentence):
            make()

    def test_an_edit_reads_them(self):
        family = FAMILIES["llava"]
        model, inputs = family.make(), family.inputs()
        roles = Roles.of_ids(inputs["input_ids"], image=IMAGE)
        told = []

        class Images(Edit):
            def heads(self, heads, site, run):
                told.append(int(run.role("image").sum()))
                return heads

        with apply(model, Images(stack="text"), roles=roles):
            model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        assert set(told) == {int((inputs["input_ids"] == IMAGE).sum())}
        with pytest.raises(ValueError, match="no roles were given"), apply(model, Images(stack="text")):
            model.generate(**inputs, max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("told", ["ids", "real"])
def test_roles_are_told_where_the_tokens_are(told):
    """On the device of the pass: "meta" stands for one that is not the processor's."""
    run = Run(roles=Roles({"image": slice(1, 3)}, length=5))
    run.begin(past=0, length=5, batch=2, **{told: torch.ones(2, 5, dtype=torch.int64, device="meta")})
    assert run.role("image").device.type == "meta"
    run.begin(past=0, length=5, batch=2)
    assert run.role("image").tolist() == [[False, True, True, False, False]] * 2
