"""Random-feature attention, its rival, the ridge, and the functions that they learn."""

import pytest
import torch

from regardant.contract import check
from regardant.core.ridge import best_ridge, ridge
from regardant.structure.random_feature_attention_theory import RandomFeatureAttention, RandomFeatureMLP
from regardant.task.key_averages import KeyAverages
from regardant.train.fit import seeded


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(dim: int, heads: int, **options):
    with seeded(0):
        return RandomFeatureAttention(dim, heads, **options).double()


def test_one_head_by_hand():
    model = attention(1, 1)
    model.weights.copy_(torch.tensor([[[2.0, 0.0], [0.0, -1.0]]]))
    model.values.data = torch.tensor([3.0, 5.0], dtype=torch.float64)
    # Query 1, keys 2 and -4: scores 2·1·2 − 1 = 3 and 2·1·(−4) − 1 < 0.
    tokens = torch.tensor([[[1.0], [2.0], [-4.0]]], dtype=torch.float64)
    assert model(tokens).item() == pytest.approx(3 * (3 * 2 + 5) / 2)


def test_the_order_of_the_keys_makes_no_difference():
    model, tokens = attention(3, 7), drawn(4, 9, 3)
    model.values.data = drawn(28, seed=1)
    turned = torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], dim=1)
    torch.testing.assert_close(model(turned), model(tokens), rtol=0, atol=1e-12)
    with seeded(0):
        rival = RandomFeatureMLP(3, 8, 28).double()
    rival.values.data = drawn(28, seed=1)
    assert (rival(turned) - rival(tokens)).abs().max() > 0.1


def test_a_ridge_is_its_closed_form_either_way_round():
    for samples, width in ((30, 7), (7, 30)):
        features, targets = drawn(samples, width), drawn(samples, seed=1)
        found = ridge(features, targets, (1e-3, 0.5))
        for weights, strength in zip(found, (1e-3, 0.5)):
            left = features.T @ features + strength * samples * torch.eye(width, dtype=torch.float64)
            torch.testing.assert_close(weights, torch.linalg.solve(left, features.T @ targets))


def test_the_best_ridge_is_the_one_that_predicts_best():
    features, true = drawn(40, 30), drawn(30, seed=1)
    targets = features @ true + 3 * drawn(40, seed=2)
    kept = drawn(500, 30, seed=3)
    strengths = (1e-6, 1e-1, 1e3)
    found = best_ridge(features, targets, (kept, kept @ true), strengths)
    each = ridge(features, targets, strengths)
    errors = [(kept @ (weights - true)).square().mean() for weights in each]
    assert torch.equal(found, each[errors.index(min(errors))])


def test_what_the_model_can_express_is_learned():
    model, tokens = attention(2, 4), drawn(200, 6, 2)
    model.values.data = drawn(12, seed=1)
    targets = model.predict(tokens)
    model.values.data.zero_()
    model.fit(tokens, targets, (tokens[:20], targets[:20]), strengths=(1e-14,))
    fresh = drawn(50, 6, 2, seed=5)
    right = attention(2, 4)
    right.values.data = drawn(12, seed=1)
    torch.testing.assert_close(model.predict(fresh), right.predict(fresh), rtol=0, atol=1e-6)


def test_pitfall_models_are_matched_by_what_ridge_fits():
    assert attention(4, 10).values.numel() == 50
    assert RandomFeatureMLP(4, 3, 50).values.numel() == 50


def test_pitfall_query_and_keys_have_the_constant():
    model = attention(2, 3)
    model.values.data = drawn(9, seed=1)
    zeros = torch.zeros(1, 4, 2, dtype=torch.float64)
    constant = model.weights[:, 2, 2].relu() * model.values.view(3, 3)[:, 2]
    torch.testing.assert_close(model(zeros)[0], constant.sum() / 3**0.5, rtol=0, atol=1e-12)
    # Without it a function that is even in the query could not be told from zero.
    tokens = drawn(1, 4, 2)
    assert (model(tokens) - model(torch.cat([-tokens[:, :1], tokens[:, 1:]], dim=1))).abs() > 1e-3


def test_pitfall_no_softmax():
    # Attention to a key does not depend on the others: two sets of keys together give the mean of both.
    model, tokens = attention(3, 5), drawn(2, 9, 3)
    model.values.data = drawn(20, seed=1)
    halves = [torch.cat([tokens[:, :1], part], dim=1) for part in tokens[:, 1:].split(4, dim=1)]
    mean = sum(model(half) for half in halves) / 2
    torch.testing.assert_close(model(tokens), mean, rtol=0, atol=1e-12)


def test_pitfall_a_ridge_means_the_same_for_any_number_of_heads():
    tokens = drawn(300, 5, 3)
    sizes = []
    for heads in (50, 800):
        features = attention(3, heads).features(tokens)
        sizes.append(float(features.square().sum(dim=1).mean()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)


def test_the_bias_looks_at_what_is_like_the_query():
    model = attention(6, 2000, biased=True, deviation=0.1)
    assert model.weights.mean(0)[:6, :6].diag().mean().item() == pytest.approx(1, abs=0.01)
    assert model.weights[:, 6].mean().item() == pytest.approx(0, abs=0.01)
    assert attention(6, 2000, deviation=0.3).weights.std().item() == pytest.approx(0.3, rel=0.02)


def test_the_functions_by_hand():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]])
    for family, power in (("powers", 2), ("correlated", 2)):
        task = KeyAverages(family=family, power=power, dim=2, keys=2)
        draw = torch.Generator().manual_seed(0)
        beta = torch.randn(2, generator=draw)
        beta = (beta / beta.norm()).tolist()
        along = (3 * beta[0], beta[1])
        expected = {"powers": along[0] ** 2 + along[1] ** 2, "correlated": 9 * along[0] + 4 * along[1]}
        assert task.target(tokens).item() == pytest.approx(expected[family] / 2, rel=1e-5)
    drawn_tokens, _ = KeyAverages(norm=1.5).batch(3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn_tokens.norm(dim=-1), torch.full((3, 17), 1.5))


def test_the_task_keeps_its_contract():
    report = check(KeyAverages, examples=5)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: RandomFeatureAttention(4, 0), "heads is 0"),
        (lambda: RandomFeatureAttention(4, 2, deviation=0.0), "deviation is 0.0"),
        (lambda: RandomFeatureMLP(4, 2, 5)(torch.zeros(1, 5, 4)), "4 keys, but this model was made for 2"),
        (lambda: RandomFeatureAttention(4, 2)(torch.zeros(1, 1, 4)), r"tokens is \(1, 1, 4\)"),
        (lambda: ridge(torch.zeros(3, 2), torch.zeros(2), (1.0,)), "features is"),
        (lambda: ridge(torch.zeros(3, 2), torch.zeros(3), (0.0,)), "strengths is"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(act, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        act()
    assert "\n" not in str(raised.value)
