"""Gaussian adaptive attention over tokens."""

import pytest
import torch

from regardant.core.record import Record
from regardant.sequence.gaussian_mixer import GaussianMixer


def inputs(n, dim=6, seed=0, batch=2):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(**own):
    torch.manual_seed(0)
    made = GaussianMixer(6, **own).double()
    torch.nn.init.normal_(made.offsets)
    return made


@torch.no_grad()
def test_runs_part_the_real_tokens():
    padding = torch.tensor([[True] * 11, [True, False, True, True, False] + [True] * 5 + [False]])
    found = layer(runs=3).parted(padding).long()
    assert found[:, 0].argmax(0).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert [int(run[1].sum()) for run in found] == [2, 2, 4]
    assert torch.equal(found.sum(0).bool(), padding)


@torch.no_grad()
@pytest.mark.parametrize("runs", [1, 3, 20])
@pytest.mark.parametrize("combine", ["product", "sum"])
def test_weights_of_a_run_sum_to_one_and_go_into_the_record(runs, combine):
    made, x, record = layer(runs=runs, combine=combine), inputs(11), Record()
    y = made(x, record=record)
    (weights,) = record.seen["weights"]
    torch.testing.assert_close(y, x * weights, rtol=0, atol=0)
    torch.testing.assert_close(weights.sum(1), torch.full((2, 6), float(min(runs, 11))).double())


@torch.no_grad()
def test_pitfall_the_statistics_know_the_future_so_there_is_no_causal_form():
    made, x = layer(), inputs(9)
    changed = x.clone()
    changed[:, 8] += 3
    assert (made(x) - made(changed))[:, 0].abs().max() > 1e-6
    assert not made.supports.causal and "causal" not in GaussianMixer.__init__.__annotations__
    with pytest.raises(ValueError, match="does not decode"):
        made.start(2)


@torch.no_grad()
def test_channels_do_not_mix():
    made, x = layer(), inputs(9)
    changed = x.clone()
    changed[:, :, 2] *= 7
    moved = (made(x) - made(changed)).abs().amax((0, 1)) > 0
    assert moved.nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(("own", "words"), [({"runs": 0}, "runs is 0"), ({"gaussians": 0}, "gaussians is 0")])
def test_bad_input_is_one_sentence(own, words):
    with pytest.raises(ValueError, match=words):
        layer(**own)
