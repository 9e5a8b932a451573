"""Edits at work: order, nesting, counting, conflicts, and what is refused before any pass."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import regardant
from regardant.edit.apply import apply
from regardant.edit.edit import Edit
from regardant.world.families import FAMILIES
from tests.host.edits import HeadsOff, Pushed, Sharper

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class Times(Edit):
    """Heads times a number, plus a number: the order of two of them shows."""

    factor_of_heads: float = 1.0
    more: float = 0.0

    def heads(self, heads, site, run):
        return heads * self.factor_of_heads + self.more


@dataclass
class Even(Edit):
    """Replaces attention by the mean of what is visible."""

    def attend(self, call, site, run):
        return call.mix(call.weights(torch.zeros_like(call.logits())))


class EvenPrompt(Even):
    """The same, only in the prompt's pass."""

    passes = ("prompt",)


class SharpDecoding(Sharper):
    """Sharper, only while decoding."""

    passes = ("decoding",)


@dataclass
class Loud(Edit):
    """The third word is always the next."""

    def scores(self, scores, run):
        return scores + 1e4 * (torch.arange(scores.shape[1]) == 3)


@pytest.fixture(scope="module")
def llama():
    family = FAMILIES["llama"]
    return family.make(), family.inputs()


def scores(model, inputs, *edits):
    with torch.no_grad():
        if not edits:
            return model(**inputs).logits
        with apply(model, *edits):
            return model(**inputs).logits


def test_edits_act_in_order(llama):
    twice_then_more = scores(*llama, Times(2.0), Times(1.0, 0.5))
    more_then_twice = scores(*llama, Times(1.0, 0.5), Times(2.0))
    torch.testing.assert_close(twice_then_more, scores(*llama, Times(2.0, 0.5)))
    torch.testing.assert_close(more_then_twice, scores(*llama, Times(2.0, 1.0)))


def test_inner_contexts_come_after_outer_ones_and_leave_them_at_work(llama):
    model, inputs = llama
    with torch.no_grad(), apply(model, Times(2.0)):
        with apply(model, Times(1.0, 0.5)):
            inner = model(**inputs).logits
        outer = model(**inputs).logits
    torch.testing.assert_close(inner, scores(model, inputs, Times(2.0, 0.5)))
    torch.testing.assert_close(outer, scores(model, inputs, Times(2.0)))


def test_only_the_sites_that_are_touched_leave_the_fused_path(llama):
    model, inputs = llama
    with torch.no_grad(), apply(model, Sharper(layers=[1, -1])) as applied:
        model(**inputs)
        model(**inputs)
    ways = {int(name.split(".")[2]): how for name, how in applied.calls}
    assert ways == {0: "fused", 1: "written", 2: "fused", 3: "written"}
    assert set(applied.calls.values()) == {2} and applied.fired(applied.edits[0]) == {"logits": 4}


def test_the_residual_stream_and_the_scores(llama):
    model, inputs = llama
    assert not torch.equal(scores(model, inputs, Pushed(layers=[3])), scores(model, inputs))
    with apply(model, Loud()):
        text = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert (text[:, -3:] == 3).all()


def test_a_whole_computation_replaced(llama):
    found = scores(*llama, Even())
    with torch.no_grad(), apply(llama[0], Even()) as applied:
        llama[0](**llama[1])
    assert {how for _, how in applied.calls} == {"replaced"}
    assert not torch.allclose(found, scores(*llama))


def test_edits_of_different_passes_compose(llama):
    model, inputs = llama
    with torch.no_grad(), apply(model, EvenPrompt(), SharpDecoding()) as applied:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for edit, stage in zip(applied.edits, ("attend", "logits")):
        assert applied.fired(edit)[stage] > 0
    ways = {how for _, how in applied.calls}
    assert ways == {"replaced", "written"}


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ((Even(), EvenPrompt()), "Even and EvenPrompt both replace the attention of layer 0 of main"),
        (
            (Even(), Sharper()),
            "Even replaces the attention of layer 0 of main, so that Sharper finds no weights",
        ),
        ((Sharper(layers=[4]),), "layers holds 4, but the attention layers here are 0 to 3"),
        ((Sharper(layers=[-9]),), "layers holds -5"),
        ((Sharper(stack="vision"),), "stack is 'vision', but this model has main"),
        ((Sharper(cross=True),), "Sharper touches no attention of this model"),
        ((), "edits is empty"),
        (("sharper",), "an edit is wanted, but 'sharper' is str"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_any_pass(llama, edits, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply(llama[0], *edits)
    assert "_regardant" not in vars(llama[0])


def test_conflicts_with_an_outer_edit_are_refused_too(llama):
    with pytest.raises(ValueError, match="both replace"), apply(llama[0], Even()):
        apply(llama[0], Even())


def test_edits_that_replace_different_layers_do_not_conflict(llama):
    assert torch.isfinite(scores(*llama, Even(layers=[0]), Even(layers=[1]), Sharper(layers=[2]))).all()


def test_an_edit_that_never_fired_raises(llama):
    with pytest.raises(ValueError, match="HeadsOff never fired"), apply(llama[0], HeadsOff()):
        pass
    with pytest.raises(ValueError, match="SharpDecoding never fired"), apply(llama[0], SharpDecoding()):
        scores(*llama)


def test_an_exception_is_not_hidden_by_the_complaint_that_nothing_fired(llama):
    with pytest.raises(KeyError), apply(llama[0], HeadsOff()):
        raise KeyError("mine")


def test_attention_that_does_more_is_found_out(llama):
    family = FAMILIES["llama"]
    model = family.make()
    from regardant.host import transformers as host

    original = host._implementation

    def with_more(found, base):
        plain = original(found, base)

        def attention(module, q, k, v, mask, **others):
            out, weights = plain(module, q, k, v, mask, **others)
            return out * 1.5, weights

        return attention

    host._implementation = with_more
    try:
        with pytest.raises(ValueError, match=r"LlamaAttention at .* computes more than softmax"):
            scores(model, family.inputs(), Sharper())
    finally:
        host._implementation = original


def test_flash_attention_is_refused_with_what_to_do(llama):
    model = FAMILIES["llama"].make()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="set_attn_implementation"), apply(model, HeadsOff()):
        pass


def test_gradients_reach_what_an_edit_learns():
    family = FAMILIES["llama"]
    model, inputs = family.make(), family.inputs()
    strength = torch.nn.Parameter(torch.zeros(4))

    class Learned(Edit):
        def heads(self, heads, site, run):
            return heads * (1 + strength[:, None, None])

    with apply(model, Learned(layers=[2])):
        model(**inputs).logits.square().mean().backward()
    assert torch.isfinite(strength.grad).all() and (strength.grad != 0).all()


def test_at_top_level():
    assert regardant.apply is apply and regardant.Edit is Edit
