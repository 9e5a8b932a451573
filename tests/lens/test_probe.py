import pytest
import torch
from sklearn.linear_model import LogisticRegression

from regardant.lens.probe import best_penalty, fit_probe, known_probes, layer_states, probe_layers
from regardant.world.planted import planted_feature


def samples(count, width, seed=0):
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(count, width, generator=draw, dtype=torch.float64) * torch.logspace(-2, 2, width)
    labels = states[:, 0] * 100 + torch.randn(count, generator=draw, dtype=torch.float64) > 0
    return states, labels


@pytest.mark.parametrize(("count", "width"), [(40, 100), (100, 12)])
@pytest.mark.parametrize("penalty", [0.5, 50.0])
def test_the_probe_is_the_textbooks_logistic_regression(count, width, penalty):
    states, labels = samples(count, width)
    probe = fit_probe(states, labels, penalty=penalty)
    x = (states - probe.centre) / probe.scale
    known = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(x.numpy(), labels.numpy())
    assert (probe.weight - torch.from_numpy(known.coef_[0])).abs().max() < 1e-4
    assert abs(probe.bias - float(known.intercept_[0])) < 1e-4
    assert (probe(states) - torch.from_numpy(known.decision_function(x.numpy()))).abs().max() < 1e-3


def test_pitfall_states_are_standardised_so_that_huge_channels_do_not_rule():
    states, labels = samples(200, 10, seed=3)
    huge = states.clone()
    huge[:, 5] = 1e4 * huge[:, 5] + 1e6
    probe, same = fit_probe(huge, labels, penalty=10.0), fit_probe(states, labels, penalty=10.0)
    assert (probe(huge) - same(states)).abs().max() < 1e-6


def test_pitfall_noise_of_many_channels_is_not_fitted_through():
    """500 channels of noise and 60 samples: what is held out stays at chance, the penalty is a large one."""
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(1, 160, 500, generator=draw)
    labels = torch.rand(160, generator=draw) > 0.5
    train = torch.arange(160) < 60
    assert (
        fit_probe(states[0, train], labels[train], penalty=1.0).accuracy(states[0, train], labels[train]) == 1
    )
    scores = probe_layers(states, labels, train, generator=draw)
    assert abs(float(scores[0]) - 0.5) < 0.15


def test_the_planted_feature_is_found_where_it_is():
    for seed in range(2):
        for answer in known_probes(torch.Generator().manual_seed(seed)):
            assert answer.error() <= answer.tolerance, answer.what


def test_states_of_texts_of_several_lengths_are_those_of_each_alone():
    model = planted_feature()
    ids = [torch.tensor([0, 5, 1, 7]), torch.tensor([0, 2, 6]), torch.tensor([0, 9, 2, 8])]
    found = layer_states(model, ids)
    assert found.shape == (5, 3, model.config.hidden_size)
    with torch.no_grad():
        for place, text in enumerate(ids):
            states = model.model(text[None], output_hidden_states=True).hidden_states
            for layer in range(4):
                assert (found[layer, place] - states[layer][0, -1]).abs().max() < 1e-6


def test_a_penalty_is_chosen_that_suits():
    states, labels = samples(120, 300, seed=5)
    draw = torch.Generator().manual_seed(0)
    assert best_penalty(states, labels, generator=draw, penalties=(1.0, 100.0)) in (1.0, 100.0)


def test_bad_labels_are_refused():
    states, labels = samples(10, 3)
    with pytest.raises(ValueError, match="labels are all the same"):
        fit_probe(states, torch.ones(10, dtype=torch.bool), penalty=1.0)
    with pytest.raises(ValueError, match="but it is bool"):
        fit_probe(states, labels.int(), penalty=1.0)
    with pytest.raises(ValueError, match="train marks all samples or none"):
        probe_layers(states[None], labels, torch.ones(10, dtype=torch.bool), generator=torch.Generator())
