"""The yardstick: the four uses, the compositional index, the efficiency length."""

import math

import pytest
import torch

from regardant.atlas import catalog
from regardant.compare.yardstick import (
    USES,
    Metric,
    compositional_index,
    declared,
    efficiency_length,
    served,
)
from regardant.core.mixer import MultiHead
from regardant.core.supports import Supports

MIXERS = [name for name in catalog.names("sequence")]


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_serves_the_uses_that_it_declares_and_no_others(name):
    assert served(name) == declared(name)


def test_the_baselines_of_the_paper():
    uses = {name: [use for use, has in declared(name).items() if has] for name in MIXERS}
    for name in ("softmax", "performer", "cosformer", "abc"):
        assert uses[name] == list(USES)
    for name in ("local-attention", "long-short"):
        assert uses[name] == ["noncausal self", "causal self"]
    for name in ("nystromformer", "lara", "probsparse"):
        assert uses[name] == ["noncausal self"]


class QueryLandmarks(MultiHead):
    """Queries are told apart by their difference from the mean query: causal by its word, not in truth."""

    supports = Supports(pattern=False, step=False)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        return super().attend(q - q.mean(dim=2, keepdim=True), k, v, x=x, pattern=pattern)


def test_pitfall_landmarks_over_queries_break_causal_cross_attention():
    assert served(QueryLandmarks) == {
        "noncausal self": True, "causal self": False, "noncausal cross": True, "causal cross": False,
    }  # fmt: skip


class Drawing(MultiHead):
    """Draws anew in every training call, as random features do."""

    supports = Supports(pattern=False, step=False)

    def merge(self, heads, *, x, record=None):
        heads = heads * (1 + torch.rand_like(heads)) if self.training else heads
        return super().merge(heads, x=x, record=record)


def test_pitfall_random_draws_in_training_are_not_taken_for_leaks():
    assert all(served(Drawing).values())


class Deaf(MultiHead):
    """Takes a memory and makes nothing of it."""

    supports = Supports(pattern=False, step=False)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        return super().attend(q, k, v, x=x, pattern=pattern) * (1 if self.context_dim is None else 0)


def test_a_memory_that_makes_no_difference_is_not_served():
    assert served(Deaf) == {use: "self" in use for use in USES}


def test_pitfall_z_scores_are_of_the_mixers_compared_and_signed():
    """Three mixers at 1, 2, 3: z-scores ∓√1.5; a loss counts the other way round."""
    metrics = [
        Metric("causal self", "a", "accuracy", True, {"x": 1, "y": 2, "z": 3}),
        Metric("causal self", "a", "loss", False, {"x": 10, "y": 20, "z": 30}),
        Metric("causal self", "b", "loss", False, {"x": 5, "y": 6, "z": 7}),
        Metric("noncausal self", "c", "loss", False, {"x": 4, "y": 4}),
    ]
    index, unit = compositional_index(metrics), math.sqrt(1.5)
    assert index["causal self"] == pytest.approx({"x": unit / 2, "y": 0, "z": -unit / 2})
    assert index["noncausal self"] == {"x": 0, "y": 0}


def test_a_mixer_that_lacks_a_task_has_no_index_there():
    metrics = [
        Metric("causal self", "a", "loss", False, {"x": 1, "y": 2, "z": 3}),
        Metric("causal self", "b", "loss", False, {"x": 1, "y": 2}),
    ]
    assert set(compositional_index(metrics)["causal self"]) == {"x", "y"}


def test_efficiency_length_of_known_curves():
    """n² against 1000 n cross at 1000; the measured crossing is interpolated."""
    lengths = [250, 500, 1000, 2000, 4000]
    found = efficiency_length(lengths, [1000 * n for n in lengths], [n * n for n in lengths])
    assert found.fitted == pytest.approx(1000, rel=1e-6)
    assert found.seen == pytest.approx(1000, rel=1e-6)
    offset = efficiency_length(lengths, [6e5 + 100 * n for n in lengths], [n * n for n in lengths])
    crossing = (100 + math.sqrt(100**2 + 4 * 6e5)) / 2
    assert offset.fitted == pytest.approx(crossing, rel=1e-6)
    assert 500 < offset.seen < 1000


def test_efficiency_lengths_at_the_ends():
    lengths = [100, 200, 400]
    always = efficiency_length(lengths, [1, 2, 4], [n * n for n in lengths])
    assert always.seen == 100 and always.fitted <= 100
    never = efficiency_length(lengths, [n * 10 for n in lengths], [n * 1.0 for n in lengths])
    assert never.seen == never.fitted == math.inf


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: efficiency_length([1, 2], [1, 2], [1, 2]), "at least 3 rising"),
        (lambda: efficiency_length([1, 2, 3], [1, 0, 2], [1, 2, 3]), "a cost is not positive"),
        (lambda: compositional_index([Metric("causal self", "a", "loss", False, {"x": 1})]), "2 finite ones"),
        (lambda: compositional_index([]), "metrics is empty"),
        (lambda: served("eca-net"), "of kind gate"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(ValueError, match=word):
        call()
