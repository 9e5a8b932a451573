import pytest
import torch

from regardant.lens.patching import Patching, PromptPair, logit_difference
from regardant.world.planted import planted_induction

PREVIOUS, COPYING = (0, 1), (2, 3)
CLEAN = torch.tensor([[0, 9, 3, 4, 12, 5, 3], [0, 9, 7, 8, 13, 5, 7]])
CORRUPT = torch.tensor([[0, 9, 3, 6, 12, 5, 3], [0, 9, 7, 2, 13, 5, 7]])
METRIC = logit_difference(torch.tensor([4, 8]), torch.tensor([6, 2]))


@pytest.fixture
def patching():
    model = planted_induction(previous=PREVIOUS, copying=COPYING)
    return Patching(model, PromptPair(CLEAN, CORRUPT), METRIC)


def only(head, value=1.0):
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[head] = value
    return expected


def test_the_answer_goes_over_with_the_head_that_says_it(patching):
    assert float(patching.clean.min()) > 5 and float(patching.corrupt.max()) < -5
    assert (patching.heads().values - only(COPYING)).abs().max() < 1e-3
    assert (patching.heads(onto="clean").values - only(COPYING)).abs().max() < 1e-3
    assert (patching.heads(rows=[-1]).values - only(COPYING)).abs().max() < 1e-3
    assert patching.heads(rows=[3]).values.abs().max() < 1e-3


def test_the_stream_carries_the_answer_where_it_stands_and_then_at_the_end(patching):
    found = patching.stream()
    # Behind layers 0 and 1 it is still the token at place 3; behind the copying head it is the last row.
    expected = torch.zeros(3, 7, dtype=torch.float64)
    expected[0, 3] = expected[1, 3] = expected[2, 6] = 1.0
    assert (found - expected).abs().max() < 1e-3


def test_paths_to_the_logits_begin_at_the_copying_head_alone(patching):
    for freeze in (False, True):
        found = patching.path(freeze_mlps=freeze)
        assert (found.values - only(COPYING, -2.0 / 2)).abs().max() < 1e-3


def test_the_previous_token_head_speaks_through_the_keys_of_the_copying_head():
    """Which token stood before the answer differs: what the first head wrote is how the second finds it."""
    clean, corrupt = torch.tensor([[0, 9, 3, 4, 12, 5, 3]]), torch.tensor([[0, 9, 11, 4, 12, 5, 3]])
    model = planted_induction(previous=PREVIOUS, copying=COPYING)
    metric = logit_difference(torch.tensor([4]), torch.tensor([6]))
    found = Patching(model, PromptPair(clean, corrupt), metric)
    keys = found.path(receivers=[(*COPYING, "k")], rows=slice(None))
    assert (keys.values - only(PREVIOUS, -1.0)).abs().max() < 1e-3
    for other in ("q", "v"):
        assert found.path(receivers=[(*COPYING, other)], rows=slice(None)).values.abs().max() < 1e-3
    # Straight to the logits it has nothing to say.
    assert (found.path().values - only(COPYING, -1.0)).abs().max() < 1e-3


def test_patching_all_is_the_other_run(patching):
    """Heads and rows one by one against the plain run that they make together."""
    model = patching.model
    with torch.no_grad():
        alone = METRIC(model(CORRUPT).logits[:, -1])
    assert torch.allclose(alone, patching.corrupt)
    assert "_regardant" not in model.__dict__


def test_bad_pairs_are_refused():
    with pytest.raises(ValueError, match="aligned token by token"):
        PromptPair(CLEAN, CORRUPT[:, :-1])
    with pytest.raises(ValueError, match="clean and corrupt are the same"):
        PromptPair(CLEAN, CLEAN)
    model = planted_induction()
    with pytest.raises(ValueError, match="head is 4"):
        Patching(model, PromptPair(CLEAN, CORRUPT), METRIC).heads(heads=[(0, 4)])
