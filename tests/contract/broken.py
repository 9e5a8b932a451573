"""Sequence mixers and rules that break one promise each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regardant.core.mixer import MultiHead
from regardant.core.pattern import Blocks, Causal, both
from regardant.core.plan import attend_dense
from regardant.core.position import Position
from regardant.core.rule import SoftmaxRule
from regardant.core.supports import Supports
from tests.contract.sound import DenseRule, PlainSoftmax, RunningMean, Sum

SELF_ONLY = Supports(
    noncausal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False, grouped=False,
    linear_in_values=False, time=2.0, memory=2.0,
)  # fmt: skip


class WrongReference(SoftmaxRule):
    """The reference is what the paper says; forward scales by something else."""

    def forward(self, q, k, v, *, pattern=None, scale=None):
        return attend_dense(q, k, v, pattern, scale=0.97 * q.shape[-1] ** -0.5)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        return attend_dense(q, k, v, pattern)

    supports = replace(SoftmaxRule.supports, step=False, memory=2.0)


class NonFiniteGradients(RunningMean):
    """Adds √0, which changes no value and has no gradient."""

    def forward(self, x, context=None, padding=None, *, record=None):
        return super().forward(x, context, padding) + (x - x.detach()).square().sum().sqrt()


class DetachedKeys(PlainSoftmax):
    """The right value, but no gradient to the keys in forward."""

    def attend(self, q, k, v, **given):
        return super().attend(q, k.detach(), v, **given)


class OverflowingExponential(DenseRule):
    """exp(logits) / Σ exp(logits) without taking the maximum out."""

    def weigh(self, logits, mask):
        weights = logits.clamp(max=600).exp()
        weights = weights if mask is None else weights * mask
        total = weights.sum(-1, keepdim=True)
        return weights / torch.where(total == 0, 1, total)


class BatchCentred(RunningMean):
    """Takes the mean over the batch away, as a batch norm would."""

    def centred(self, y: Tensor) -> Tensor:
        return y - 0.1 * y.mean(0)

    def forward(self, x, context=None, padding=None, *, record=None):
        return self.centred(super().forward(x, context, padding))

    def step(self, x_t, state):
        y, state = super().step(x_t, state)
        return self.centred(y), state


class BlindToStrides(RunningMean):
    """Reads the memory of its input as if it were contiguous."""

    def forward(self, x, context=None, padding=None, *, record=None):
        self.check(x, padding)
        strides = (x.shape[1] * x.shape[2], x.shape[2], 1)
        return super().forward(x.as_strided(x.shape, strides))


class RemembersTheLast(RunningMean):
    """Mixes in what it saw in the call before."""

    def __init__(self, dim: int, *, causal: bool = True):
        super().__init__(dim, causal=causal)
        self.last = 0.0

    def forward(self, x, context=None, padding=None, *, record=None):
        y = super().forward(x, context, padding) + self.last
        self.last = float(y.detach().mean())
        return y


class ForgetsABuffer(RunningMean):
    """Its random mixing of channels is not in the state_dict."""

    def __init__(self, dim: int, *, causal: bool = True):
        super().__init__(dim, causal=causal)
        self.register_buffer("mixing", torch.randn(dim, dim), persistent=False)

    def means(self, x):
        return super().means(x @ self.mixing)

    def step(self, x_t, state):
        self.check(x_t[:, None], None)
        return super().step(x_t @ self.mixing, state)


class QuadraticTime(PlainSoftmax):
    """Softmax over everything that declares itself linear."""

    supports = replace(PlainSoftmax.supports, time=1.0)


class QuadraticMemory(MultiHead):
    """All logits at once, declared as if they were not."""

    supports = replace(DenseRule.supports, memory=1.0)

    def make_rule(self):
        return DenseRule()


class TakesAnyWidth(RunningMean):
    """Cuts off what is too wide without a word."""

    def check(self, x, padding):
        super().check(x[..., : self.dim], padding)

    def forward(self, x, context=None, padding=None, *, record=None):
        self.check(x, padding)
        return self.to_out(self.means(x[..., : self.dim]))


class SeesTheFuture(RunningMean):
    """Adds a little of the mean over all tokens."""

    supports = SELF_ONLY

    def means(self, x):
        return super().means(x) + 1e-3 * x.mean(1, keepdim=True)


class BalancedSelection(RunningMean):
    """A cluster takes its best quarter of all tokens; attention inside is causal, the choice is not."""

    supports = SELF_ONLY

    def means(self, x):
        score = x[..., 0]
        chosen = score >= score.topk(1 + x.shape[1] // 4, dim=1).values[:, -1:]
        return super().means(x * chosen[..., None]) * chosen[..., None]


class ScalesByLength(RunningMean):
    """How long the sequence will be shows in every output."""

    supports = SELF_ONLY

    def means(self, x):
        return super().means(x) * (1 + x.shape[1] / 1000)


class CentresInTraining(RunningMean):
    """In training it takes the mean over all tokens away."""

    def means(self, x):
        means = super().means(x)
        return means - 0.1 * means.mean(1, keepdim=True) if self.training else means


class AlwaysCausal(MultiHead):
    """causal=False is accepted and makes no difference."""

    supports = replace(PlainSoftmax.supports, cross=False, causal_cross=False)

    def visible(self, keys, *, across, padding):
        return both(Causal(), super().visible(keys, across=across, padding=padding))


class DriftingStep(RunningMean):
    """Every fiftieth step forgets to decay."""

    def step(self, x_t, state):
        if state.length % 50 == 49:
            state = Sum(state.length, state.total / self.decay)
        return super().step(x_t, state)


class StepInPlace(RunningMean):
    """A step writes into the state that it was given."""

    def step(self, x_t, state):
        y, new = super().step(x_t, state)
        state.total.copy_(new.total)
        return y, new


class GrowingState(RunningMean):
    """Keeps every token, though it declares a state of constant size."""

    @dataclass
    class Everything(Sum):
        tokens: tuple[Tensor, ...] = ()

    def start(self, batch, *, context=None, padding=None):
        return self.Everything(0, super().start(batch).total)

    def step(self, x_t, state):
        y, new = super().step(x_t, state)
        return y, self.Everything(new.length, new.total, (*state.tokens, x_t))


class GrowingStep(RunningMean):
    """Goes over as many positions as there were, though the state is constant."""

    def step(self, x_t, state):
        y, new = super().step(x_t, state)
        places = torch.arange(1 + state.length, dtype=y.dtype)
        return y + 0 * (places[:, None] * y.mean()).sum(), new


class SoftPadding(DenseRule):
    """Padded keys get a small weight instead of none."""

    def weigh(self, logits, mask):
        return (logits if mask is None else logits.masked_fill(~mask, -8.0)).softmax(-1)

    supports = replace(DenseRule.supports, causal=False, causal_cross=False, pattern=False)


class EmptyRows(DenseRule):
    """A row without a key is 0/0."""

    def weigh(self, logits, mask):
        return (logits if mask is None else logits.masked_fill(~mask, float("-inf"))).softmax(-1)

    supports = replace(DenseRule.supports, pattern=False)


class CountsPadding(DenseRule):
    """Divides by the number of keys, padded ones too."""

    def forward(self, q, k, v, *, pattern=None, scale=None):
        return super().forward(q, k, v, pattern=pattern, scale=scale) * (1 + k.shape[2] / 1000)

    reference = forward
    supports = replace(DenseRule.supports, causal=False, causal_cross=False)


class WidensPatterns(PlainSoftmax):
    """Sees its block as well as what the pattern allows."""

    supports = replace(PlainSoftmax.supports, padding=False, step=False, memory=2.0)

    def visible(self, keys, *, across, padding):
        if self.pattern is None:
            return super().visible(keys, across=across, padding=padding)
        return both(Causal() if self.causal and not across else None, self.pattern.on(keys) | Blocks(4))


class BentHeads(PlainSoftmax):
    """Bends what its heads found, and declares itself linear in its values."""

    supports = replace(PlainSoftmax.supports, step=False)

    def attend(self, q, k, v, **given):
        return super().attend(q, k, v, **given).tanh()

    def attend_reference(self, q, k, v, **given):
        return super().attend_reference(q, k, v, **given).tanh()


class NarrowValues(DenseRule):
    """Forgets that values may be wider than keys."""

    def forward(self, q, k, v, *, pattern=None, scale=None):
        return super().forward(q, k, v, pattern=pattern, scale=scale)[..., : k.shape[-1]]

    reference = DenseRule.forward


class DeafPosition(PlainSoftmax):
    """Takes a rotation of queries and keys and leaves it out."""

    def __init__(self, dim: int, heads: int, **shared):
        super().__init__(dim, heads, **shared)
        self.position = self.position if self.position.biases else Position()


class WrongGroups(PlainSoftmax):
    """Deals the shared keys to the heads in turn instead of in groups."""

    supports = replace(PlainSoftmax.supports, step=False)

    def project(self, x, context=None, *, offset=0):
        q, k, v = super().project(x, context, offset=offset)
        times = q.shape[1] // k.shape[1]
        return q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1)


class IgnoresContext(PlainSoftmax):
    """Looks at a context of ones, whatever it is given."""

    def project(self, x, context=None, *, offset=0):
        return super().project(x, None if context is None else torch.ones_like(context), offset=offset)


class QueriesMix(PlainSoftmax):
    """In cross-attention every query sees a little of all queries."""

    supports = replace(PlainSoftmax.supports, step=False)

    def project(self, x, context=None, *, offset=0):
        q, k, v = super().project(x, context, offset=offset)
        return (q if context is None else q + 0.01 * q.mean(2, keepdim=True)), k, v
