"""The agreement study: its table, its pitfalls, and that evidence is found where it is."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from regardant.lens.explainers import (
    deep_shap,
    integrated_gradients,
    last_attention,
    lime,
    pooled_attention,
    rollout,
)
from regardant.lens.song_of_disagreement import AgreementStudy
from regardant.task.phrases import CLS, NOT, PAD, SEP, SPECIAL, Sentiment, Synonyms
from regardant.train.fit import evaluate, fit, seeded
from regardant.train.text_classifiers import AttentiveLSTM, TokenTransformer

pytestmark = pytest.mark.filterwarnings("ignore")


def fixed(scores):
    return lambda model, tokens, target: scores


def test_the_table_by_hand_and_pitfall_padded_places_have_no_rank():
    tokens = torch.tensor([[CLS, 5, 6, 7, PAD]])
    a = torch.tensor([[9.0, 1, 2, 3, 9]])
    b = torch.tensor([[-9.0, 1, 3, 2, -9]])
    study = AgreementStudy({"a": fixed(a), "b": fixed(b)}, special=SPECIAL)
    # Three words, three pairs: two concordant, one discordant.
    assert study(None, tokens, torch.tensor([0])).table["a", "b"] == pytest.approx(1 / 3)


def test_pitfall_signed_and_absolute_scores_are_another_comparison():
    tokens = torch.tensor([[5, 6, 7]])
    a, b = torch.tensor([[-3.0, -2, -1]]), torch.tensor([[3.0, 2, 1]])
    for absolute, expected in ((False, -1.0), (True, 1.0)):
        study = AgreementStudy({"a": fixed(a), "b": fixed(b)}, absolute=absolute)
        assert study(None, tokens, torch.tensor([0])).table["a", "b"] == pytest.approx(expected)


def test_pitfall_all_explain_the_same_class():
    told = []

    def listening(model, tokens, target):
        told.append(target.tolist())
        return torch.rand(tokens.shape)

    with seeded(0):
        model = TokenTransformer(60, layers=1).eval()
    tokens, _ = Sentiment().batch(5, torch.Generator().manual_seed(0))
    AgreementStudy({"a": listening, "b": listening})(model, tokens)
    assert told[0] == told[1] == model(tokens).argmax(-1).tolist()


def test_pitfall_lime_with_many_samples_agrees_with_itself_and_with_few_less():
    with seeded(0):
        model = AttentiveLSTM(60).eval()
    tokens, _ = Sentiment().batch(6, torch.Generator().manual_seed(0))

    def agreement(samples):
        study = AgreementStudy(
            {str(seed): lime(torch.Generator().manual_seed(seed), samples=samples) for seed in (1, 2)},
            special=SPECIAL,
        )
        return study(model, tokens).table["1", "2"]

    assert agreement(800) > max(0.5, agreement(40))


def test_between_families():
    tokens = torch.tensor([[5, 6, 7]])
    up, down = torch.tensor([[1.0, 2, 3]]), torch.tensor([[3.0, 2, 1]])
    study = AgreementStudy({"a": fixed(up), "b": fixed(up), "c": fixed(down)})
    found = study(None, tokens, torch.tensor([0]))
    assert found.between(("a", "b"), ("a", "b")) == pytest.approx(1.0)
    assert found.between(("a", "b"), ("c",)) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="no pair is between"):
        found.between(("c",), ("c",))
    with pytest.raises(ValueError, match="at least two can agree"):
        AgreementStudy({"a": fixed(up)})


@pytest.mark.parametrize("make", [AttentiveLSTM, TokenTransformer])
def test_padding_changes_no_prediction_and_no_explanation(make):
    with seeded(0):
        model = make(60).eval()
    tokens, _ = Sentiment(longest=12).batch(4, torch.Generator().manual_seed(0))
    padded = torch.cat([tokens, torch.full((4, 5), PAD)], dim=1)
    torch.testing.assert_close(model(padded), model(tokens), atol=1e-5, rtol=1e-5)
    target = torch.zeros(4, dtype=torch.long)
    read = pooled_attention() if make is AttentiveLSTM else last_attention()
    torch.testing.assert_close(
        read(model, padded, target)[:, :13], read(model, tokens, target), atol=1e-5, rtol=1e-4
    )
    explain = integrated_gradients(steps=5)
    torch.testing.assert_close(
        explain(model, padded, target)[:, :13], explain(model, tokens, target), atol=1e-5, rtol=1e-3
    )


def test_attributions_of_a_trained_model_point_at_the_evidence():
    task = Sentiment(held_out=40)
    with seeded(0):
        model = AttentiveLSTM(task.vocabulary, dim=32)
    fit(model, task, steps=150, batch=64, learning_rate=1e-2, seed=0)
    assert evaluate(model, task) >= 0.85
    tokens = torch.cat([inputs for inputs, _ in task.validation()])
    target = model(tokens).argmax(-1)
    evidence = task.evidence(tokens)
    words = evidence | (tokens >= 20)
    for explain in (integrated_gradients(steps=10), lime(torch.Generator().manual_seed(0), samples=100)):
        found = explain(model, tokens, target).abs()
        inside, outside = found[evidence].mean(), found[words & ~evidence].mean()
        assert inside > 2 * outside


def test_phrases_mean_what_their_labels_say():
    generator = torch.Generator().manual_seed(0)
    tokens, labels = Sentiment().batch(300, generator)
    for row, label in zip(tokens.tolist(), labels.tolist()):
        total = 0
        for before, word in pairwise(row):
            if 4 <= word < 20:
                total += (1 if word < 12 else -1) * (-1 if before == NOT else 1)
        assert total != 0 and (total > 0) == bool(label)
    tokens, labels = Synonyms().batch(300, generator)
    for row, label in zip(tokens.tolist(), labels.tolist()):
        first, second = row[: row.index(SEP)], row[row.index(SEP) :]
        assert any(word + 4 in second for word in first if 4 <= word < 8) == bool(label)
    assert 0.4 < float(labels.double().mean()) < 0.6


def test_rollout_of_a_transformer_rows_sum_to_one():
    with seeded(0):
        model = TokenTransformer(60).eval()
    tokens, _ = Sentiment().batch(3, torch.Generator().manual_seed(1))
    found = rollout()(model, tokens, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(found.sum(-1), torch.ones(3), atol=1e-5, rtol=1e-5)
    assert (found[tokens == PAD] == 0).all()


def test_deep_shap_needs_references():
    with pytest.raises(ValueError, match="background has 1 references"):
        deep_shap(torch.zeros(1, 4, 8))
