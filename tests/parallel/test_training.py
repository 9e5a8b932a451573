"""A model of ours, trained with its sequences split over ranks by one argument."""

from dataclasses import dataclass

import pytest
import torch

from regardant.parallel.processes import on_ranks
from regardant.task.score import IGNORED, label_loss, summed_label_loss
from regardant.train.fit import fit
from tests.parallel import on_a_rank


@dataclass(frozen=True)
class Echo:
    """The token before, at some positions; `first` positions do not count."""

    length: int
    first: int = 0
    vocabulary: int = 11
    name = "echo"

    def batch(self, size, generator):
        tokens = torch.randint(self.vocabulary, (size, self.length), generator=generator)
        labels = tokens.roll(1, dims=1)
        labels[:, : self.first] = IGNORED
        return tokens, labels

    loss = staticmethod(label_loss)
    metric = staticmethod(summed_label_loss)


HYBRID = ["lightning-attention-2", "softmax"]


@pytest.mark.parametrize(
    "ranks, system, names, first",
    [(2, "lasp-2", HYBRID, 0), (4, "lasp-2", HYBRID, 7), (2, "rows", ["softmax"], 0)],
)
def test_every_step_is_that_of_one_process(ranks, system, names, first):
    """Four ranks and 7 positions that do not count: the first rank counts nothing, the second a part."""
    task, steps = Echo(16, first), 4
    alone = on_a_rank.network(names, task)
    right = fit(alone, task, steps=steps, batch=4, learning_rate=1e-2, seed=0)
    for losses, weights in on_ranks(ranks, on_a_rank.trained, system, names, task, steps):
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(right.losses), rtol=1e-5, atol=0)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-4)


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_are_those_of_one_process_to_float32_rounding(ranks):
    task = Echo(32)
    model = on_a_rank.network(HYBRID, task)
    tokens, labels = task.batch(2, torch.Generator().manual_seed(0))
    task.loss(model(tokens), labels).backward()
    largest = max(float(each.grad.abs().max()) for each in model.parameters())
    for gradients in on_ranks(ranks, on_a_rank.gradients, "lasp-2", HYBRID, task, tokens, labels):
        for parameter, gradient in zip(model.parameters(), gradients):
            assert float((gradient - parameter.grad).abs().max()) <= 2e-6 * max(largest, 1)


def test_a_length_that_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match="the sequence has 15 tokens, which 2 ranks cannot share evenly"):
        on_ranks(2, on_a_rank.trained, "lasp-2", HYBRID, Echo(15), 1)


def test_a_model_that_reads_one_position_off_is_refused():
    with pytest.raises(ValueError, match="Classifier does not work on a part of a sequence"):
        on_ranks(2, on_a_rank.refused, "classifier", Echo(16))


def test_a_rank_that_refuses_is_heard_and_the_others_are_not_waited_for():
    with pytest.raises(ValueError, match="only rank 1 minds"):
        on_ranks(2, on_a_rank.refuses_alone)


def test_what_is_cut_is_joined_again():
    x = torch.arange(24.0).view(2, 12)
    for part, whole in on_ranks(3, on_a_rank.cut_and_join, x):
        assert part.shape == (2, 4)
        assert torch.equal(whole, x)
