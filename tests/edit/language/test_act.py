"""ACT: the equation by hand, its pitfalls, and the choice of heads."""

from __future__ import annotations

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.language.act import ACT, calibrated, kept_heads, later_sinks
from regardant.world.families import FAMILIES, PAD

pytestmark = pytest.mark.filterwarnings("ignore")


def causal_map(n: int, seed: int = 0, *, sinks=()) -> torch.Tensor:
    logits = torch.randn(1, 1, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for at in sinks:
        logits[..., at] += 5
    return logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf).softmax(-1)


def test_calibration_of_a_row_by_hand():
    maps = torch.tensor([[[[0.2, 0.5, 0.3]]]], dtype=torch.float64)
    sinks = torch.tensor([[[False, True, False]]])
    # 0.6 of 0.5 is freed: 0.3, of which 0.2/0.5 goes to the first and 0.3/0.5 to the last.
    expected = torch.tensor([[[[0.2 + 0.12, 0.2, 0.3 + 0.18]]]], dtype=torch.float64)
    torch.testing.assert_close(calibrated(maps, sinks, beta=0.4), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_rows_still_sum_to_one_and_the_future_stays_hidden(beta):
    maps = causal_map(20, sinks=(0, 7))
    sinks = later_sinks(maps.sum(2), torch.arange(20, 0, -1).double()[None, None], alpha=3.0)
    found = calibrated(maps, sinks, beta=beta)
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 1, 20, dtype=torch.float64))
    assert (found.triu(1) == 0).all()


def test_the_first_sink_is_kept_and_the_later_ones_found():
    maps = causal_map(20, sinks=(0, 7, 11))
    sinks = later_sinks(maps.sum(2), torch.arange(20, 0, -1).double()[None, None], alpha=4.0)
    assert sinks[0, 0].nonzero().flatten().tolist() == [7, 11]


def test_pitfall_late_columns_are_means_over_the_queries_that_see_them():
    n = 20
    maps = torch.eye(n, dtype=torch.float64)[None, None] * 0.0
    maps[..., 0] = 1
    maps[0, 0, 15:, 0], maps[0, 0, 15:, 15] = 0.6, 0.4  # 5 queries see column 15, and give it 0.4 each
    queries = torch.arange(n, 0, -1).double()[None, None]
    assert later_sinks(maps.sum(2), queries, alpha=5.0)[0, 0].nonzero().flatten().tolist() == [15]
    by_all = later_sinks(maps.sum(2), torch.full((1, 1, n), float(n)), alpha=5.0)
    assert not by_all.any()


def test_pitfall_columns_that_few_queries_see_are_no_sinks():
    maps = causal_map(12, sinks=(0,))
    maps[0, 0, -1] = 0
    maps[0, 0, -1, -1] = 1  # the last token looks at itself alone
    queries = torch.arange(12, 0, -1).double()[None, None]
    assert not later_sinks(maps.sum(2), queries, alpha=5.0, fewest=4)[0, 0, -1]
    assert later_sinks(maps.sum(2), queries, alpha=5.0, fewest=1)[0, 0, -1]


def test_a_row_that_sees_only_sinks_stays():
    maps = torch.tensor([[[[0.0, 1.0, 0.0]]]], dtype=torch.float64)
    sinks = torch.tensor([[[False, True, False]]])
    assert torch.equal(calibrated(maps, sinks, beta=0.0), maps)


def test_pitfall_left_padding_moves_no_sink():
    family = FAMILIES["llama"]
    model = family.make()
    ids = family.inputs(batch=1, length=20)["input_ids"]
    padded = torch.cat([torch.full((1, 5), PAD), ids], dim=1)
    real = (padded != PAD).long()
    places = (real.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), apply(model, ACT(alpha=1.3, layers=[0, 1, 2, 3])):
        alone = model(input_ids=ids).logits
        found = model(input_ids=padded, attention_mask=real, position_ids=places).logits[:, 5:]
    torch.testing.assert_close(found, alone, atol=5e-5, rtol=1e-4)


def test_behind_a_cache_the_sums_run_on():
    family = FAMILIES["llama"]
    model = family.make()
    ids = family.inputs(batch=1, length=20)["input_ids"]
    watched = []

    class Watched(ACT):
        def sinks(self, maps, site, run):
            found = super().sinks(maps, site, run)
            if site.layer == 0:
                watched.append({k: v.clone() for k, v in run.memory(self, site).items() if k != "first"})
            return found

    with torch.no_grad(), apply(model, Watched(alpha=1e6, layers=[0])):  # no sink: maps stay the same
        model(input_ids=ids)
        cache = model(input_ids=ids[:, :15], use_cache=True).past_key_values
        for at in range(15, 20):
            cache = model(input_ids=ids[:, at : at + 1], past_key_values=cache).past_key_values
    whole, last = watched[0], watched[-1]
    for name in ("received", "queries"):
        torch.testing.assert_close(last[name], whole[name], atol=1e-5, rtol=1e-5)


def test_pitfall_only_chosen_heads_and_layers_change():
    family = FAMILIES["llama"]
    model, inputs = family.make(), family.inputs(length=20)
    with torch.no_grad(), apply(model, ACT(alpha=1.3, heads_at={2: [1]})) as applied:
        model(**inputs)
    written = {name for name, how in applied.calls if how == "written"}
    assert written == {"model.layers.2.self_attn"}


def test_pitfall_by_default_the_first_two_layers_and_the_last_are_left_alone():
    family = FAMILIES["llama"]
    model = family.make(num_hidden_layers=6)
    with torch.no_grad(), apply(model, ACT()) as applied:
        model(**family.inputs(length=20))
    assert {name for name, how in applied.calls if how == "written"} == {
        f"model.layers.{layer}.self_attn" for layer in (2, 3, 4)
    }


def test_kept_heads_are_those_whose_calibration_alone_raises_the_score():
    family = FAMILIES["llama"]
    model, inputs = family.make(), family.inputs(length=24)
    edit = dict(alpha=1.2, fewest=2)
    with torch.no_grad():
        target = model(**inputs).logits
        with apply(model, ACT(heads_at={1: [2]}, **edit)):
            wanted = model(**inputs).logits

    def score():
        with torch.no_grad():
            return -float((model(**inputs).logits - wanted).square().mean())

    assert not torch.equal(target, wanted)
    assert 2 in kept_heads(model, score, layers=[1], **edit)[1]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (dict(alpha=0.0), "alpha is 0"),
        (dict(beta=1.5), "beta is 1.5"),
        (dict(heads_at={9: [0]}), "names layer 9"),
        (dict(heads_at={1: [7]}), r"names heads \[7\] of layer 1"),
    ],
)
def test_settings_that_cannot_be(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply(FAMILIES["llama"].make(), ACT(**wrong))
