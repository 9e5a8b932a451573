import math

import torch

from regardant.host.run import Run
from regardant.lens.attention_statistics import (
    attended,
    distance_bins,
    distance_profile,
    entropy,
    induction_keys,
    mean_distance,
    share_at_distance,
    share_on,
    sink_share,
)
from regardant.lens.tape import View

WEIGHTS = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.25, 0.75, 0], [0.25, 0.25, 0.25, 0.25]])[
    None, None
]


def view(first=0):
    return View(
        None, Run(), torch.arange(4), torch.ones(4, 4).tril().bool()[None, None], torch.tensor([first])
    )


def close(found, expected):
    assert torch.allclose(found[0, 0].double(), torch.tensor(expected).double(), atol=1e-6)


def test_rows_worked_by_hand():
    close(entropy(WEIGHTS, view()), [0, math.log(2), 0.5623351446, math.log(4)])
    close(sink_share()(WEIGHTS, view()), [1, 0.5, 0, 0.25])
    close(sink_share(2)(WEIGHTS, view(1)), [0, 0.5, 1, 0.5])
    close(mean_distance(WEIGHTS, view()), [0, 0.5, 0.25, 1.5])
    close(share_at_distance(1)(WEIGHTS, view()), [0, 0.5, 0.25, 0.25])
    assert attended(WEIGHTS, view())[0, 0].tolist()[::2] == [0, 2]
    assert attended(WEIGHTS, view()).shape == (1, 1, 4)


def test_the_distance_profile_is_all_of_the_attention_in_bins_that_double():
    assert distance_bins(torch.tensor([0, 1, 2, 3, 4, 7, 8, -2])).tolist() == [0, 1, 2, 2, 3, 3, 4, 2]
    found = distance_profile(3)(WEIGHTS, view())
    close(found, [[1, 0, 0], [0.5, 0.5, 0], [0.75, 0.25, 0], [0.25, 0.25, 0.5]])


def test_induction_keys_stand_behind_earlier_occurrences_of_the_token():
    keys = induction_keys(torch.tensor([[5, 6, 5, 6]]))(view())
    expected = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert keys[0].int().tolist() == expected
    close(share_on(induction_keys(torch.tensor([[5, 6, 5, 6]])))(WEIGHTS, view()), [0, 0, 0.25, 0.25])


def test_share_on_chosen_keys():
    close(share_on(torch.tensor([[False, True, True]]))(WEIGHTS, view()), [0, 0.5, 1, 0.5])
