"""Few heads found and tuned; what comes out is an edit that folds away."""

from __future__ import annotations

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.head_affine import HeadAffine
from regardant.train.lofit import HeadVectors, LoFiT, count
from regardant.train.responses import Responses
from regardant.world.families import FAMILIES

EXAMPLES = [([5 + at, 6, 7 + at], [40]) for at in range(12)]


def llama():
    return FAMILIES["llama"].make()


def silent_but(model, kept):
    """The output projections read only the heads that are kept."""
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            columns = layer.self_attn.o_proj.weight.unflatten(1, (4, 16))
            for head in range(4):
                if (number, head) not in kept:
                    columns[:, head] = 0
    return model


def settings(**changed):
    return LoFiT(
        **dict(heads=2, select_steps=15, tune_steps=25, batch=6, select_rate=0.02, tune_rate=0.1) | changed
    )


def test_the_heads_that_reach_the_output_are_found():
    kept = {(1, 2), (3, 0)}
    model = silent_but(llama(), kept)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scores = settings().select(model, Responses(EXAMPLES))
    assert len(scores) == 16 and set(list(scores)[:2]) == kept
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_pitfall_query_heads_are_counted_and_not_key_heads():
    sizes = settings()._sizes(llama())
    assert len(sizes) == 16 and set(sizes.values()) == {16}


def test_tuned_offsets_lower_the_loss_and_fold_to_the_same_logits():
    model, task = llama(), Responses(EXAMPLES)
    rows = torch.arange(12)
    chosen = [(1, 0), (2, 3)]
    edit = settings().tune(model, task, chosen)
    assert isinstance(edit, HeadAffine) and list(edit.offsets) == chosen and not edit.scales
    assert count(edit.offsets) == 2 * 16
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        before = task.losses(model, rows).mean()
        with apply(model, edit):
            after, under = task.losses(model, rows).mean(), model(ids).logits
        with edit.fold(model):
            torch.testing.assert_close(model(ids).logits, under, atol=1e-4, rtol=1e-4)
    assert after < 0.75 * before


def test_pitfall_the_penalty_covers_the_trained_vectors_alone():
    vectors = HeadVectors({(0, 0): 3, (1, 2): 2}, deviation=0.0, seed=0)
    with torch.no_grad():
        vectors.by_head()[0, 0].copy_(torch.tensor([1.0, -2, 0]))
        vectors.by_head()[1, 2].fill_(0.5)
    assert float(vectors.length().detach()) == 4.0
    model, task = llama(), Responses(EXAMPLES)
    free = settings(select_steps=20).select(model, task)
    pressed = settings(select_steps=20, select_penalty=10.0).select(model, task)
    assert max(pressed.values()) < 0.3 * max(free.values())


def test_pitfall_tuning_starts_from_the_clean_model_with_vectors_drawn_anew():
    model, task = llama(), Responses(EXAMPLES)
    method = settings(select_rate=0.5, tune_steps=1, tune_rate=1e-12)
    edit = method.fit(model, task)
    drawn = HeadVectors({head: 16 for head in edit.offsets}, deviation=method.deviation, seed=0)
    for head, vector in edit.offsets.items():
        torch.testing.assert_close(vector, drawn.by_head()[head].detach())
        assert float(vector.norm()) < 0.02


def test_pitfall_the_offsets_act_on_every_token_of_prompt_and_answer():
    model, ids = llama(), torch.arange(5, 12)[None]
    edit = HeadAffine(offsets={(0, 1): torch.ones(16)})
    columns = model.model.layers[0].self_attn.o_proj.weight[:, 16:32]
    seen = {}
    projection = model.model.layers[0].self_attn.o_proj
    with torch.no_grad():
        handle = projection.register_forward_hook(
            lambda module, args, output: seen.setdefault("plain", output)
        )
        model(ids)
        handle.remove()
        handle = projection.register_forward_hook(
            lambda module, args, output: seen.setdefault("moved", output)
        )
        with apply(model, edit):
            model(ids)
        handle.remove()
    moved = seen["moved"] - seen["plain"]
    torch.testing.assert_close(moved, columns.sum(1).expand_as(moved), atol=1e-5, rtol=1e-4)


def test_a_killed_selection_goes_on(tmp_path):
    model, task = llama(), Responses(EXAMPLES)
    expected = settings().select(model, task)

    class Killed(Exception):
        pass

    def kill(done, steps, loss):
        if done == 15:
            raise Killed

    path = tmp_path / "scales.safetensors"
    with pytest.raises(Killed):
        settings().select(model, task, checkpoint=path, progress=kill)
    assert settings().select(model, task, checkpoint=path) == expected


def test_bad_settings_are_refused():
    model, task = llama(), Responses(EXAMPLES)
    with pytest.raises(ValueError, match="heads is 0"):
        LoFiT(heads=0)
    with pytest.raises(ValueError, match="deviation is -1"):
        settings(deviation=-1)
    with pytest.raises(ValueError, match=r"chosen holds \(9, 0\)"):
        settings().tune(model, task, [(9, 0)])
    with pytest.raises(ValueError, match="heads is 99, but the model has 16 query heads"):
        settings(heads=99, select_steps=1).fit(model, task)


def test_known_answers_are_found():
    for seed in range(3):
        for answer in LoFiT.known_answers(torch.Generator().manual_seed(seed)):
            assert answer.error() <= answer.tolerance, answer.what
