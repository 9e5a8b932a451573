"""HiP: softmax over what the search found, the paper's pitfalls, decoding, budgets."""

from __future__ import annotations

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.language.hip_attention import HiPAttention
from regardant.edit.language.key_choice import KeyChoice
from regardant.edit.language.sink_and_window import SinkAndWindow
from regardant.host.run import Run
from regardant.world.families import FAMILIES
from tests.edit.language.texts import read, site, text

pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = [
    dict(budget=12, sinks=2, window=4, query_block=1),
    dict(budget=13, sinks=1, window=4, query_block=4, key_block=3, shared=True, representative="first"),
    dict(budget=20, sinks=0, window=3, query_block=8),
    dict(budget=16, sinks=2, window=8, query_block=4, key_block=1),
]


@pytest.mark.parametrize("length", [1, 7, 31, 67])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_heads_are_softmax_over_what_is_seen(settings, length):
    edit, whole = HiPAttention(**settings), text(length)
    expected = KeyChoice.mix(edit, whole, site(), Run())
    torch.testing.assert_close(read(edit, whole), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_budget_sinks_and_window_are_kept_and_no_later_key_is_seen(settings):
    edit, whole = HiPAttention(**settings), text(60)
    seen = edit.seen(whole, site())
    assert int(seen.sum(-1).max()) <= edit.budget
    assert not (seen & ~whole.earlier()).any()
    always = SinkAndWindow(budget=edit.sinks + edit.window, sinks=edit.sinks).seen(whole, site())
    assert (seen | ~always).all()


def test_pitfall_a_text_within_the_budget_is_dense():
    for length in (5, 20, 40):
        whole = text(length)
        edit = HiPAttention(budget=44, sinks=2, window=4, query_block=8)
        assert torch.equal(edit.seen(whole, site()), whole.earlier().expand(2, 4, -1, -1))


def test_pitfall_a_query_that_chooses_alone_is_causal_and_a_block_is_up_to_its_last():
    whole, cut = text(64), 40
    changed = text(64)
    changed.q[:, :, cut:] += 3
    changed.k[:, :, cut:] -= 2
    alone = HiPAttention(budget=12, sinks=2, window=4, query_block=1)
    assert torch.equal(
        alone.seen(whole, site())[:, :, :cut, :cut], alone.seen(changed, site())[:, :, :cut, :cut]
    )
    block = HiPAttention(budget=12, sinks=2, window=4, query_block=16)
    whole_block = cut // 16 * 16
    rows = (slice(None), slice(None), slice(0, whole_block), slice(0, whole_block))
    assert torch.equal(block.seen(whole, site())[rows], block.seen(changed, site())[rows])


def test_pitfall_one_outlier_query_speaks_for_its_block():
    """The largest product counts: a query that is much longer than the others chooses for all."""
    found = []
    for seed in (1, 2):
        whole, other = text(64, batch=1), text(64, seed=seed, batch=1)
        outlier = torch.ones(8, dtype=torch.float64)
        whole.k[:] += 3 * outlier  # so that all its products are positive
        whole.q[:] = other.q
        whole.q[:, :, 50] = 1000 * outlier
        edit = HiPAttention(budget=12, sinks=2, window=4, query_block=16)
        found.append(edit.search(whole).blocks[:, :, 3])
    assert torch.equal(*found)


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[0] | dict(shared=True, key_block=1)], ids=str)
def test_step_by_step_as_at_once(settings):
    edit, whole = HiPAttention(**settings), text(50)
    expected = read(edit, whole)
    torch.testing.assert_close(read(edit, whole, [20, 31, *range(32, 51)]), expected, atol=1e-9, rtol=0)


def test_a_choice_is_kept_for_some_steps_while_the_window_grows():
    edit = HiPAttention(budget=12, sinks=2, window=4, query_block=8, refresh=3)
    each = HiPAttention(budget=12, sinks=2, window=4, query_block=1)
    whole, begin = text(40), 30
    found = read(edit, whole, [begin, *range(begin + 1, 41)])[:, :, begin:]
    weights = whole.logits().masked_fill(~whole.earlier(), -torch.inf)
    chosen = each.seen(whole, site())
    for step in range(10):
        place, searched = begin + step, begin + step // 3 * 3
        seen = chosen[:, :, searched].clone()
        seen[:, :, searched + 1 : place + 1] = True
        row = weights[:, :, place].masked_fill(~seen, -torch.inf).softmax(-1)
        expected = torch.einsum("bhn,bhne->bhe", row, whole.v.repeat_interleave(2, 1))
        torch.testing.assert_close(found[:, :, step], expected, atol=1e-9, rtol=0)


@torch.no_grad()
def test_the_first_layers_stay_dense_where_layers_does_not_choose():
    model, ids = FAMILIES["llama"].make(), FAMILIES["llama"].inputs(length=24)["input_ids"]
    for settings, expected in ((dict(dense_layers=3), 1), (dict(dense_layers=3, layers=[0, 1]), 2)):
        with apply(model, HiPAttention(budget=40, **settings)) as applied:
            model(input_ids=ids)
        assert sum(how == "replaced" for _, how in applied.calls) == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(budget=37), "one block of 2 keys are 38"),
        (dict(window=0), "window is 0"),
        (dict(sinks=-1), "sinks is -1"),
        (dict(representative="last"), "no representative is called"),
    ],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        HiPAttention(**settings)
