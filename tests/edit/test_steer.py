"""Directions on the residual stream, at layers and roles."""

from __future__ import annotations

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.steer import Steer, mean_difference
from regardant.host.roles import Roles
from regardant.world.families import FAMILIES

WAVE = torch.linspace(-2, 2, 64)
IDS = torch.arange(5, 17)[None]


def llama():
    return FAMILIES["llama"].make()


def streams(model, ids, *edits, **given):
    """The stream as it enters each block and the last norm."""
    seen, handles = [], []
    for layer in (*model.model.layers, model.model.norm):
        handles.append(
            layer.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
        )
    with torch.no_grad():
        if edits:
            with apply(model, *edits, **given):
                model(ids)
        else:
            model(ids)
    for handle in handles:
        handle.remove()
    return seen


def test_the_direction_is_added_where_the_stream_leaves_the_layer():
    model = llama()
    plain, steered = streams(model, IDS), streams(model, IDS, Steer(direction=WAVE, layers=[1], strength=0.5))
    assert torch.equal(steered[0], plain[0]) and torch.equal(steered[1], plain[1])
    torch.testing.assert_close(steered[2], plain[2] + 0.5 * WAVE)


def test_each_layer_may_have_its_own_direction():
    model = llama()
    plain = streams(model, IDS)
    steered = streams(model, IDS, Steer(direction={0: WAVE, -1: -WAVE}))
    torch.testing.assert_close(steered[1], plain[1] + WAVE)
    last = streams(model, IDS, Steer(direction={3: -WAVE}))
    torch.testing.assert_close(last[4], plain[4] - WAVE)


def test_only_tokens_of_the_roles_are_steered():
    model = llama()
    roles = Roles({"system": slice(0, 3)}, length=10)
    plain = streams(model, IDS)
    for wanted, places in (
        (["system"], range(3)),
        (["generated"], range(10, 12)),
        (["system", "prompt"], range(10)),
    ):
        steered = streams(model, IDS, Steer(direction=WAVE, layers=[0], roles=wanted), roles=roles)
        moved = (steered[1] - plain[1]).abs().amax(-1)[0] > 1e-6
        assert moved.nonzero()[:, 0].tolist() == list(places)


def test_generated_tokens_are_steered_alike_with_and_without_a_cache():
    model = llama()
    roles = Roles({"prompt": slice(0, 12)})
    texts = []
    for cache in (True, False):
        with apply(model, Steer(direction=3 * WAVE, layers=[1], roles=["generated"]), roles=roles):
            texts.append(
                model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=cache)
            )
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0))


def test_a_direction_is_the_difference_of_means_at_the_last_token():
    model = llama()
    towards, away = torch.randint(5, 80, (3, 7)), torch.randint(5, 80, (2, 5))
    found = mean_difference(model, towards, away, layers=[1, 2])
    assert set(found) == {1, 2}
    expected = streams(model, towards)[2][:, -1].mean(0) - streams(model, away)[2][:, -1].mean(0)
    torch.testing.assert_close(found[1], expected)
    with torch.no_grad(), apply(model, Steer(direction=found)):
        model(away)


def test_what_does_not_fit_is_refused_before_any_pass():
    model = llama()
    with pytest.raises(
        ValueError, match="direction has 3 numbers, but the stream at layer 0 of main is 64 wide"
    ):
        apply(model, Steer(direction=torch.ones(3)))
    with pytest.raises(ValueError, match="layers holds 8"):
        apply(model, Steer(direction={8: WAVE}))
    with pytest.raises(ValueError, match="direction already says in which layers"):
        Steer(direction={0: WAVE}, layers=[1])
    with pytest.raises(ValueError, match="roles is 'system'"):
        Steer(direction=WAVE, roles="system")
    with pytest.raises(ValueError, match="direction is empty"):
        Steer(direction={})
