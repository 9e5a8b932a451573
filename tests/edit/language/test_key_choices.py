"""Sinks and a window, the oracle, and what they stand on: texts without padding, exact softmax over a
choice."""

from __future__ import annotations

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.language.key_choice import KeyChoice
from regardant.edit.language.oracle_keys import OracleKeys
from regardant.edit.language.sink_and_window import SinkAndWindow
from regardant.host.run import Run
from regardant.world.families import FAMILIES, PAD
from tests.edit.language.texts import read, site, text

pytestmark = pytest.mark.filterwarnings("ignore")

CHOICES = [
    SinkAndWindow(budget=9, sinks=3),
    SinkAndWindow(budget=5, sinks=0),
    SinkAndWindow(budget=100),
    OracleKeys(budget=1),
    OracleKeys(budget=7),
    OracleKeys(budget=100),
]


@pytest.mark.parametrize("length", [1, 4, 31, 67])
@pytest.mark.parametrize("edit", CHOICES, ids=repr)
def test_heads_are_softmax_over_what_is_seen(edit, length):
    whole = text(length)
    expected = KeyChoice.mix(edit, whole, site(), Run())
    torch.testing.assert_close(read(edit, whole), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("edit", CHOICES, ids=repr)
def test_in_pieces_and_step_by_step_the_same(edit):
    whole = text(40)
    expected = read(edit, whole)
    torch.testing.assert_close(read(edit, whole, [13, 30, *range(31, 41)]), expected, atol=1e-9, rtol=0)


def test_sinks_and_window_by_hand():
    seen = SinkAndWindow(budget=4, sinks=1).seen(text(7), site())[0, 0]
    expected = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4, 5], [0, 4, 5, 6]]
    assert [row.nonzero()[:, 0].tolist() for row in seen] == expected


def test_no_choice_of_as_many_keys_captures_more_than_the_oracle():
    whole = text(50)
    weights = whole.logits().masked_fill(~whole.earlier(), -torch.inf).softmax(-1)
    captured = [
        (weights * edit.seen(whole, site())).sum(-1)
        for edit in (OracleKeys(budget=9), SinkAndWindow(budget=9), SinkAndWindow(budget=9, sinks=0))
    ]
    assert OracleKeys(budget=9).seen(whole, site()).sum(-1).max() == 9
    assert (captured[0] >= captured[1] - 1e-12).all()
    assert (captured[0] >= captured[2] - 1e-12).all()
    best = weights.sort(-1, descending=True).values[..., :9].sum(-1)
    torch.testing.assert_close(captured[0], best, atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_and_a_static_cache(side):
    family = FAMILIES["llama"]
    model = family.make()
    long = family.inputs(batch=1, length=20)["input_ids"]
    short = family.inputs(batch=1, length=14, seed=1)["input_ids"]
    empty = torch.full((1, 6), PAD)
    ids = torch.cat([long, torch.cat([empty, short] if side == "left" else [short, empty], dim=1)])
    real = (ids != PAD).long()
    places = (real.cumsum(1) - 1).clamp(min=0)
    edit = SinkAndWindow(budget=6, sinks=2)
    with apply(model, edit):
        both = model(input_ids=ids, attention_mask=real, position_ids=places).logits
        for row, alone in enumerate((long, short)):
            expected = model(input_ids=alone).logits[0]
            torch.testing.assert_close(both[row][real[row].bool()], expected, atol=1e-5, rtol=1e-5)
    with apply(model, edit):
        dynamic = model.generate(long, max_new_tokens=6, do_sample=False)
        static = model.generate(long, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(dynamic, static)


@torch.no_grad()
def test_layers_that_slide_are_left_and_other_masks_refused():
    model = FAMILIES["gemma3"].make()
    inputs = FAMILIES["gemma3"].inputs(length=20)
    with apply(model, OracleKeys(budget=4)) as applied:
        model(**inputs)
    ran = sorted(how for (_, how), _ in applied.calls.items())
    assert ran == ["fused", "fused", "replaced", "replaced"]
    llama = FAMILIES["llama"].make()
    ids = FAMILIES["llama"].inputs(batch=1, length=8)["input_ids"]
    blocks = (torch.arange(8)[:, None] // 4 == torch.arange(8) // 4).tril()[None, None]
    with pytest.raises(ValueError, match="several texts in one"), apply(llama, SinkAndWindow(budget=6)):
        llama(input_ids=ids, attention_mask=blocks)
    with pytest.raises(ValueError, match="touches no attention"):
        apply(FAMILIES["bert"].make(), SinkAndWindow(budget=6))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SinkAndWindow(budget=4, sinks=4), "do not fit"),
        (lambda: SinkAndWindow(sinks=-1), "counted from 0"),
        (lambda: OracleKeys(budget=0), "at least 1 key"),
    ],
)
def test_wrong_settings_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
