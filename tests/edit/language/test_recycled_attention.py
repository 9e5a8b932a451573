"""Recycled attention: full steps and small ones, the schedule, what is counted, and the paper's pitfalls."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from regardant.edit.apply import apply
from regardant.edit.language.recycled_attention import RecycledAttention
from regardant.host.host import host_of
from regardant.host.seam import Seam
from regardant.world.families import FAMILIES, PAD

PROMPT, LENGTH = 20, 30

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return FAMILIES["llama"].make()


class Reader:
    """Keeps each call's rotated queries, keys and values, and the heads."""

    def __init__(self):
        self.calls = []

    def stages(self, site):
        return frozenset({"read"}) if site.layer == 1 else frozenset()

    def read(self, call, heads, weights, site, run):
        self.calls.append((call.q.double(), call.k.double(), call.v.double(), call.scaling, heads))


def ids_of(length=LENGTH, batch=1, seed=0):
    return FAMILIES["llama"].inputs(batch=batch, length=length, seed=seed)["input_ids"]


def decode(model, edit, ids, prompt=PROMPT, **given):
    """Scores of the steps behind the prompt, layer 1's calls, and what was read."""
    reader, scores = Reader(), []
    with apply(model, edit) as applied:
        Seam.of(model).enter([reader])
        held = model(input_ids=ids[:, :prompt], use_cache=True, **given).past_key_values
        for at in range(prompt, ids.shape[1]):
            scores.append(model(input_ids=ids[:, at : at + 1], past_key_values=held).logits[:, -1])
        Seam.of(model).leave([reader])
        reads = edit.reads(applied.run)
    return torch.stack(scores), reader.calls, reads


def written_out(calls, *, budget, every, smoothing):
    """The equations for one sample, key head by key head, with lists."""
    q, _, _, scale, _ = calls[0]
    group, kept, heads = q.shape[1] // calls[0][1].shape[1], {}, []
    last = PROMPT - 1

    def choose(q_row, k, own):
        a = torch.stack([(q_row[own * group + r] @ k.T * scale).softmax(-1) for r in range(group)]).amax(0)
        side = smoothing // 2
        smooth = [float(a[max(j - side, 0) : j + side + 1].max()) for j in range(len(a))]
        return sorted(range(len(a)), key=lambda j: -smooth[j])[:budget]

    for own in range(calls[0][1].shape[1]):
        kept[own] = choose(q[0, :, -1], calls[0][1][0, own], own)
    for step, (q, k, v, _, _) in enumerate(calls[1:]):
        place, row = PROMPT + step, []
        full = every is not None and (place - last) % every == 0
        for own in range(k.shape[1]):
            seen = list(range(place + 1)) if full else kept[own][: max(budget - (place - last), 0)]
            seen = seen if full else seen + list(range(last + 1, place + 1))[-budget:]
            for r in range(group):
                weights = (q[0, own * group + r, 0] @ k[0, own, seen].T * scale).softmax(-1)
                row.append(weights @ v[0, own, seen])
        heads.append(torch.stack(row))
        if full:
            kept = {own: choose(q[0, :, 0], k[0, own], own) for own in kept}
            last = place
    return torch.stack(heads)


@pytest.mark.parametrize("settings", [(8, 3, 1), (6, 4, 3), (9, None, 7), (4, None, 1)])
def test_heads_are_the_papers_schedule_written_out(model, settings):
    """Pitfalls: the true rotations stay; new tokens are read in order; what leaves is what had least."""
    budget, every, smoothing = settings
    edit = RecycledAttention(budget=budget, every=every, smoothing=smoothing)
    _, calls, _ = decode(model, edit, ids_of())
    expected = written_out(calls, budget=budget, every=every, smoothing=smoothing)
    found = torch.stack([heads[0, :, 0] for *_, heads in calls[1:]])
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-5)


def test_every_step_full_and_a_budget_for_all_are_the_model_itself(model):
    ids = ids_of()
    held = model(input_ids=ids[:, :PROMPT], use_cache=True).past_key_values
    plain = torch.stack(
        [
            model(input_ids=ids[:, at : at + 1], past_key_values=held).logits[:, -1]
            for at in range(PROMPT, LENGTH)
        ]
    )
    always = RecycledAttention(every=1, similarity=1.0, budget=4)
    assert torch.equal(decode(model, always, ids)[0], plain)
    ample = RecycledAttention(budget=LENGTH + 9, every=None)
    torch.testing.assert_close(decode(model, ample, ids)[0], plain, atol=1e-5, rtol=1e-5)


def test_reads_are_counted(model):
    layers, heads = 4, 2
    edit = RecycledAttention(budget=6, every=5)
    reads = decode(model, edit, ids_of())[2]
    held = sum(range(PROMPT + 1, LENGTH + 1))
    full = [place for place in range(PROMPT, LENGTH) if (place - (PROMPT - 1)) % 5 == 0]
    read = sum(place + 1 for place in full) + 6 * (LENGTH - PROMPT - len(full))
    assert reads.held.tolist() == [held * layers * heads]
    assert reads.read.tolist() == [read * layers * heads]
    assert reads.share == pytest.approx(read / held)


def test_pitfall_layers_refresh_apart_where_their_queries_turn(model):
    """By similarity, each layer and sample decides by its own queries; samples do not meet."""
    edit = RecycledAttention(budget=6, every=2, similarity=0.6)
    ids = ids_of(batch=3)
    scores, calls, reads = decode(model, edit, ids)
    for sample in range(3):
        alone, _, own = decode(model, edit, ids[sample : sample + 1])
        torch.testing.assert_close(scores[:, sample], alone[:, 0], atol=1e-5, rtol=1e-5)
        assert int(reads.read[sample]) == int(own.read[0])
    # Layer 1 by hand: which steps of the first sample were full.
    last, query, full = PROMPT - 1, calls[0][0][0, :, -1].mean(0), 0
    for step, call in enumerate(calls[1:]):
        now = call[0][0, :, 0].mean(0)
        if (PROMPT + step - last) % 2 == 0 and functional.cosine_similarity(now, query, dim=0) < 0.6:
            last, query, full = PROMPT + step, now, full + 1
    only = RecycledAttention(budget=6, every=2, similarity=0.6, layers=[1])
    # With the other layers full the queries differ; what is counted must still lie between the bounds.
    share = decode(model, only, ids[:1])[2].share
    assert 6 / LENGTH <= share <= 1
    assert 0 < full <= (LENGTH - PROMPT) // 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_choose_as_they_do_alone(model, side):
    short, long = ids_of(14, seed=1), ids_of(PROMPT)
    empty = torch.full((1, PROMPT - 14), PAD)
    ids = torch.cat([torch.cat([empty, short] if side == "left" else [short, empty], dim=1), long])
    edit = RecycledAttention(budget=6, every=3)
    real = (ids != PAD).long()
    with apply(model, edit) as applied:
        model(
            input_ids=ids, attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp(min=0), use_cache=True
        )
        orders = [applied.run.memory(edit, site)["order"][0] for site in host_of(model).sites]
    with apply(model, edit) as applied:
        model(input_ids=short, use_cache=True)
        alone = [applied.run.memory(edit, site)["order"][0] for site in host_of(model).sites]
    shift = PROMPT - 14 if side == "left" else 0
    for found, expected in zip(orders, alone):
        assert torch.equal(found.sort().values, expected.sort().values + shift)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(budget=0), "at least its own key"),
        (dict(every=0), "counted from 1"),
        (dict(similarity=2.0), "between -1 and 1"),
        (dict(smoothing=4), "odd number"),
    ],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        RecycledAttention(**settings)
