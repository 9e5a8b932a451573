"""Runs with and without a part of the context, and decoding by two branches."""

from __future__ import annotations

import math

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.head_affine import HeadAffine
from regardant.edit.two_branch import TwoBranch, combine
from regardant.edit.without import Without, with_and_without
from regardant.host.roles import Roles
from regardant.world.families import FAMILIES, PAD

IDS = torch.arange(5, 17)[None]
GREEDY = dict(do_sample=False, pad_token_id=PAD, eos_token_id=95)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def llama(**settings):
    return FAMILIES["llama"].make(**settings)


def by_hand(model, ids, part, steps, *, strength, plausible, other=None):
    """Two branches without any cache, step by step."""
    other, written = other or model, []
    for _ in range(steps):
        tail = torch.tensor([written], dtype=torch.long)
        main = model(torch.cat([ids, tail], 1)).logits[:, -1]
        left = torch.cat([ids[:, : part.start], ids[:, part.stop :]], dim=1) if part else ids
        auxiliary = other(torch.cat([left, tail], 1)).logits[:, -1]
        scores = combine(main, auxiliary, strength=strength, plausible=plausible)
        written.append(int(scores.argmax()))
    return written


def test_the_combination_is_the_equation():
    main, other = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.2, 0.2, 0.6]]).log()
    found = combine(main + 3, other - 1, strength=0.5, plausible=0.4)
    expected = 1.5 * main - 0.5 * other
    torch.testing.assert_close(found[:, :2], expected[:, :2])
    assert found[0, 2] == -math.inf
    assert torch.isfinite(combine(main, other, strength=0.5, plausible=0.0)).all()


@pytest.mark.parametrize("part", [slice(0, 5), slice(3, 9)])
def test_generation_is_that_of_two_branches_by_hand_with_and_without_caches(part):
    model = llama()
    settings = dict(strength=1.5, plausible=0.05)
    expected = by_hand(model, IDS, part, 6, **settings)
    plain = model.generate(IDS, max_new_tokens=6, **GREEDY)[0, 12:].tolist()
    assert expected != plain
    for cache in (dict(), dict(use_cache=False), dict(cache_implementation="static")):
        with apply(model, TwoBranch(auxiliary=Without(part), **settings)) as applied:
            found = model.generate(IDS, max_new_tokens=6, min_new_tokens=6, **GREEDY, **cache)
        assert found[0, 12:].tolist() == expected
        assert applied.fired(applied.edits[0])["scores"] > 0
    assert model.generate(IDS, max_new_tokens=6, **GREEDY)[0, 12:].tolist() == plain


def test_another_model_may_be_the_auxiliary_branch():
    model, amateur = llama(), llama(seed=1, num_hidden_layers=1)
    expected = by_hand(model, IDS, None, 6, strength=1.0, plausible=0.1, other=amateur)
    with apply(model, TwoBranch(model=amateur)):
        assert model.generate(IDS, max_new_tokens=6, **GREEDY)[0, 12:].tolist() == expected


def test_padded_batches_are_each_text_alone():
    model = llama()
    short = torch.arange(40, 48)[None]
    batch = torch.cat([IDS, torch.cat([torch.full((1, 4), PAD), short], dim=1)])
    roles = Roles(
        {"system": torch.cat([torch.arange(12)[None] < 3, torch.tensor([[0] * 4 + [1] * 3 + [0] * 5]) > 0])}
    )
    with apply(model, TwoBranch(auxiliary=Without("system", roles=roles))):
        both = model.generate(batch, attention_mask=(batch != PAD).long(), max_new_tokens=5, **GREEDY)
    for row, ids in enumerate((IDS, short)):
        expected = by_hand(model, ids, slice(0, 3), 5, strength=1.0, plausible=0.1)
        assert both[row, 12:].tolist() == expected


def test_beams_carry_their_own_auxiliary_cache():
    model = llama()
    for search in (dict(num_beams=3), dict(num_beams=2, num_return_sequences=2)):
        with apply(model, TwoBranch(auxiliary=Without(slice(0, 5)), plausible=0.0)):
            found = model.generate(IDS, max_new_tokens=6, **GREEDY, **search)
            expected = model.generate(IDS, max_new_tokens=6, **GREEDY, **search, use_cache=False)
        assert torch.equal(found, expected)


def test_edits_beside_it_act_in_both_branches():
    model = llama()
    edit = HeadAffine(offsets={(1, 0): torch.linspace(-2, 2, 16)})
    with edit.fold(model):
        expected = by_hand(model, IDS, slice(0, 5), 5, strength=1.0, plausible=0.1)
    with apply(model, edit, TwoBranch(auxiliary=Without(slice(0, 5)))):
        assert model.generate(IDS, max_new_tokens=5, **GREEDY)[0, 12:].tolist() == expected


def test_at_zero_strength_nothing_is_done_and_nothing_is_left_behind():
    model = llama()
    plain = model(IDS).logits
    with apply(model, TwoBranch(auxiliary=Without(slice(0, 5)), strength=0.0)):
        assert torch.equal(model(IDS).logits, plain)
    with apply(model, TwoBranch(auxiliary=Without(slice(0, 5)))):
        assert not torch.equal(model(IDS).logits[:, -1], plain[:, -1])
    assert torch.equal(model(IDS).logits, plain)


def test_a_pair_has_the_same_tokens_side_by_side():
    model = llama()
    pair = with_and_without(model, IDS, Without(slice(2, 6)))
    left = torch.cat([IDS[:, :2], IDS[:, 6:]], dim=1)
    assert torch.equal(pair.ids, left) and pair.real.all()
    torch.testing.assert_close(pair.without, model(left).logits, atol=1e-5, rtol=1e-4)
    whole = model(IDS).logits
    torch.testing.assert_close(
        pair.whole, torch.cat([whole[:, :2], whole[:, 6:]], dim=1), atol=1e-5, rtol=1e-4
    )
    found = pair.loss_difference()
    assert found[0, 0].abs() < 1e-5  # the part comes behind this one
    logs = [x.log_softmax(-1) for x in (pair.whole, pair.without)]
    expected = logs[0][0, 4, left[0, 5]] - logs[1][0, 4, left[0, 5]]
    assert float(found[0, 4]) == pytest.approx(float(expected), abs=1e-5)


def test_a_slice_counts_a_texts_own_tokens():
    ids = torch.tensor([[PAD, PAD, 7, 8, 9], [5, 6, 7, 8, 9]])
    left, real = Without(slice(0, 2))(ids, ids != PAD)
    assert left[0, -1:].tolist() == [9] and left[1].tolist() == [7, 8, 9]
    assert real.sum(1).tolist() == [1, 3]


def test_parts_of_different_length_are_left_out_sample_by_sample():
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.bool)
    ids = torch.arange(10).view(2, 5)
    left, real = Without("image", roles=Roles({"image": mask}))(ids)
    assert left[0, -3:].tolist() == [2, 3, 4] and left[1].tolist() == [5, 6, 7, 9]
    assert real.tolist() == [[False, True, True, True], [True] * 4]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no roles are given"):
        Without("image")
    with pytest.raises(ValueError, match="nothing would be left out"):
        Without(slice(20, 30))(IDS)
    with pytest.raises(ValueError, match="nothing would be left"):
        Without(slice(0, 12))(IDS)
    with pytest.raises(ValueError, match="one and the same"):
        TwoBranch()
    with pytest.raises(ValueError, match="plausible is 2"):
        TwoBranch(auxiliary=Without(slice(0, 1)), plausible=2)
    model = llama()
    narrow = TwoBranch(model=llama(vocab_size=50))
    with pytest.raises(ValueError, match="scores 50 tokens, but the main one 96"), apply(model, narrow):
        model(torch.arange(5, 9)[None])
