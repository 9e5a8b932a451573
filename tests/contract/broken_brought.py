"""Networks, tasks and lenses that break one promise each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from tests.contract.sound_brought import Entropy, Larger, Pooler


class SumsOverTheBatch(Pooler):
    """One of its outputs is a number for the whole batch."""

    def forward(self, x, *, padding):
        return *super().forward(x, padding=padding), x.sum()

    def reference(self, x, *, padding):
        return *super().reference(x, padding=padding), x.sum()


class SecondOutputOff(Pooler):
    """The pooled vector is right, the weights beside it are not."""

    def forward(self, x, *, padding):
        pooled, weights = super().forward(x, padding=padding)
        return pooled, weights + 1e-6 * padding.double().to(weights)


class GradientCut(Pooler):
    """The right values, but no gradient through the weights in forward."""

    def forward(self, x, *, padding):
        self.check(x, padding)
        weights = self.weigh(x, padding)
        return self.value((weights.detach()[..., None] * x).sum(1)), weights


class SumsInItsPrecision(Pooler):
    """Takes the difference of large numbers, which half precision does not have."""

    def forward(self, x, *, padding):
        pooled, weights = super().forward(x, padding=padding)
        return (pooled + 1000) - 1000, weights


class CentresOverTheBatch(Pooler):
    """Takes the mean over the batch away."""

    def forward(self, x, *, padding):
        return super().forward(x - 0.01 * x.mean(0), padding=padding)

    def reference(self, x, *, padding):
        return super().reference(x - 0.01 * x.mean(0), padding=padding)


class OneSampleOnly(Pooler):
    """Shows its examples one by one, so that nobody can tell what a batch does."""

    @classmethod
    def examples(cls, generator):
        return (example for example in super().examples(generator) if example.batch == 1)


class ReadsMemoryInOrder(Pooler):
    """Takes its input for contiguous."""

    def forward(self, x, *, padding):
        self.check(x, padding)
        return super().forward(
            x.as_strided(x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1)), padding=padding
        )


class Remembers(Pooler):
    """Counts its calls in the output."""

    calls = 0

    def forward(self, x, *, padding):
        pooled, weights = super().forward(x, padding=padding)
        self.calls += 1
        return pooled + 1e-10 * self.calls, weights


class OutsideTheStateDict(Pooler):
    """Turns the features by a matrix that nothing saves."""

    def __init__(self, dim: int, *, temperature: float = 1.0):
        super().__init__(dim, temperature=temperature)
        self.register_buffer("turn", torch.randn(dim, dim), persistent=False)

    def weigh(self, x, padding):
        return super().weigh(x @ self.turn, padding)

    def reference(self, x, *, padding):
        weights = self.weigh(x, padding)
        return torch.einsum("bn,bnd->bd", weights, self.value(x)), weights


class CutsWhatIsTooWide(Pooler):
    """Leaves features out without a word."""

    def forward(self, x, *, padding):
        return super().forward(x[..., : self.dim], padding=padding)


class Stumbles(Pooler):
    """Checks the rank alone, so that a wrong width fails somewhere inside."""

    def check(self, x, padding):
        require(x.ndim == 3 and padding.ndim == 2, "x is [batch, length, dim], padding is [batch, length]")


class DrawsFromTheGlobal(Larger):
    """Noise from the global generator."""

    def batch(self, size, generator):
        x, targets = super().batch(size, generator)
        return x + 1e-3 * torch.randn(x.shape), targets


class MovesTheGlobal(Larger):
    """Draws from Python's generator and does nothing with it."""

    def batch(self, size, generator):
        random.random()
        return super().batch(size, generator)


class OneSeed(Larger):
    """Draws from a generator of its own."""

    def batch(self, size, generator):
        return super().batch(size, torch.Generator().manual_seed(size))


class ShiftingValidation(Larger):
    """Every pass over the validation is another."""

    passes = count()

    def validation(self):
        yield self.batch(64, torch.Generator().manual_seed(4_000_000_001 + next(self.passes)))


class TrainsOnValidation(Larger):
    """A training batch has one sample of the validation in it."""

    def batch(self, size, generator):
        x, targets = super().batch(size, generator)
        kept, right = super().batch(64, torch.Generator().manual_seed(4_000_000_001))
        at = int(torch.randint(64, (), generator=generator))
        return (
            (torch.cat([x[1:], kept[at : at + 1]]), torch.cat([targets[1:], right[at : at + 1]]))
            if (size < 64)
            else (x, targets)
        )


class OneMore(Larger):
    """Gives one sample more than asked for."""

    def batch(self, size, generator):
        return super().batch(size + 1, generator)


class LossOfArgmax(Larger):
    """A loss without a gradient."""

    def loss(self, outputs, targets):
        return (outputs.argmax(-1) != targets).float().mean()


class CountsMistakes(Larger):
    """Says that higher is better and counts mistakes."""

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        right, weight = super().metric(outputs, targets)
        return weight - right, weight


class MeanAsTotal(Larger):
    """Gives a mean where a total is asked for."""

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        right, weight = super().metric(outputs, targets)
        return right / weight, torch.ones(())


class TakesAnyLength(Larger):
    """Makes any nonsense of a negative length."""

    def batch(self, size, generator):
        return Larger(max(2, self.length), self.side, self.flipped).batch(size, generator)


class InBits(Entropy):
    """Measures in bits what is known in nats."""

    @staticmethod
    def of(weights):
        return Entropy.of(weights) / torch.tensor(2.0).log()


class KnowsNothing(Entropy):
    """Gives no answer at all."""

    @classmethod
    def known_answers(cls, generator) -> Iterator[KnownAnswer]:
        return iter(())


class NotANumber(Entropy):
    """0 · log 0 as it stands."""

    @staticmethod
    def of(weights):
        return -(weights * weights.log()).sum(-1)


class FollowsTheGlobal(Entropy):
    """Adds noise of the global generator, within the tolerance."""

    @classmethod
    def known_answers(cls, generator):
        yield KnownAnswer("noise", 1e-3 * torch.randn(3), torch.zeros(3), 1.0)


class LeavesDouble(Entropy):
    """Switches the default dtype and leaves it so."""

    @classmethod
    def known_answers(cls, generator):
        torch.set_default_dtype(torch.float64)
        yield KnownAnswer("1/3", torch.tensor(1 / 3), 1 / 3)


class NoNetwork(nn.Module):
    """A module that brings nothing."""
