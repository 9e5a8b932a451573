"""A task of a few numbers and a model that learns it at once."""

from functools import partial

import torch
from torch import nn

from regardant.task.score import label_loss, summed_label_loss
from regardant.train.fit import seeded
from regardant.train.model import TokenModel


class Successor:
    """After token t comes t + 1: nothing to look back for."""

    name, metric_name, higher_is_better = "successor", "loss", False

    def batch(self, size, generator):
        first = torch.randint(7, (size, 1), generator=generator)
        tokens = (first + torch.arange(6)) % 7
        return tokens[:, :-1], tokens[:, 1:]

    def validation(self):
        yield self.batch(7, torch.Generator().manual_seed(99))

    loss = staticmethod(label_loss)
    metric = staticmethod(summed_label_loss)


class RunningMean(nn.Module):
    """y_t = W mean(x_1 … x_t), with dropout: the smallest causal mixer that draws numbers."""

    def __init__(self, dim: int):
        super().__init__()
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, *, record=None):
        mean = x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return self.dropout(self.to_out(mean))


def small_model(seed: int = 0) -> TokenModel:
    with seeded(seed):
        return TokenModel(7, [partial(RunningMean, 8)] * 2, dim=8, length=5)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
