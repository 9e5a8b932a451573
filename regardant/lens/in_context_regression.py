"""What a layer that regresses in context has learned, and what it can be held against (He et al., 2025,
arXiv:2503.12734).

Trained heads are few numbers each: M_h is ω_h on the diagonal of the x part, v_h is μ_h at y, and the μ_h sum
to zero. A pair of heads ±ω, ±μ with small ω is gradient descent with the mean taken out,

    η/L Σ_l (x_l - x̄)·x_q y_l        η = 2 ω μ

where a single head leaves μ ȳ. Only the product ω μ is settled by the data, so it is the product to compare;
heads whose product is below a twentieth of the largest are idle, and would hide the pattern in a mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.structure.in_context_attention import InContextAttention

IDLE = 0.05


@dataclass(frozen=True)
class Heads:
    """Every head in its few numbers."""

    omega: Float[Tensor, "h"]
    """The mean of M's diagonal over x."""
    mu: Float[Tensor, "h"]
    """v at y."""
    off_diagonal: Float[Tensor, "h"]
    """‖M off its diagonal‖ / ‖its diagonal‖, over x."""
    spill: Float[Tensor, "h"]
    """The largest entry of v elsewhere than at y, in units of |μ|."""
    idle: float = IDLE
    """Heads whose |ωμ| is below this share of the largest do nothing."""

    @property
    def live(self) -> Bool[Tensor, "h"]:
        """The heads that are not idle."""
        strength = (self.omega * self.mu).abs()
        return strength >= self.idle * strength.max()

    @property
    def defect(self) -> float:
        """|Σ μ| / max |μ| over the live heads: 0 where the mean of y cancels."""
        mu = self.mu[self.live]
        return float(mu.sum().abs() / mu.abs().max())

    @property
    def rate(self) -> float:
        """Σ ω μ: the rate η of the gradient step that the heads make together."""
        return float((self.omega * self.mu).sum())


@dataclass(frozen=True)
class HeadReading:
    """Reads the heads of an `InContextAttention`, or of any matrices M [h, c, c] and rows v [h, c]."""

    idle: float = IDLE

    def __post_init__(self) -> None:
        require(0 <= self.idle < 1, f"idle is {self.idle}, but it is a share of the largest |ωμ|: 0 to 1")

    def __call__(self, layer: InContextAttention) -> Heads:
        return self.of(layer.key_query.detach(), layer.value.detach())

    def of(self, key_query: Float[Tensor, "h c c"], value: Float[Tensor, "h c"]) -> Heads:
        require(
            key_query.ndim == 3 and key_query.shape[1] == key_query.shape[2] == value.shape[-1] >= 2,
            f"key_query is {list(key_query.shape)} and value {list(value.shape)}, but they are [h, c, c] and "
            "[h, c], with c the features and y",
        )
        over_x = key_query[:, :-1, :-1]
        diagonal = over_x.diagonal(dim1=1, dim2=2)
        off = over_x - torch.diag_embed(diagonal)
        mu = value[:, -1].clone()
        spill = value[:, :-1].abs().amax(dim=1) / mu.abs()
        ratio = off.norm(dim=(1, 2)) / diagonal.norm(dim=1)
        return Heads(diagonal.mean(dim=1), mu, ratio, spill, self.idle)

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """Heads built to a pattern, and predictors in closed form against each other."""
        omega, mu = torch.tensor([[2e-4, -2e-4, 0.0], [2.5e3, -2.5e3, 1.0]], dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):  # what it starts with is written over
            layer = InContextAttention(4, 3).double()
        with torch.no_grad():
            eye = torch.zeros(5, 5, dtype=torch.float64)
            eye[:4, :4] = torch.eye(4)
            layer.key_query.copy_(omega[:, None, None] * eye)
            layer.value.zero_()
            layer.value[:, -1] = mu
        found = cls()(layer)
        yield KnownAnswer("ω of heads that were built", found.omega, omega)
        yield KnownAnswer("μ of heads that were built", found.mu, mu)
        yield KnownAnswer("idle heads are left out", found.live.double(), torch.tensor([1.0, 1.0, 0.0]))
        yield KnownAnswer("opposite heads cancel the mean", found.defect, 0.0)
        yield KnownAnswer("the rate of the step", found.rate, 1.0)

        z = torch.randn(64, 21, 5, generator=generator, dtype=torch.float64)
        z[:, -1, -1] = 0
        with torch.no_grad():
            layer.value[2] = 0
            step = debiased_gradient_step(z)
            yield KnownAnswer("a pair with small ω is the debiased step", layer(z), step, tolerance=1e-5)
            layer.key_query.zero_()
            layer.value[1:] = 0
            mean = 2.5e3 * z[:, :-1, -1].mean(dim=1)
            yield KnownAnswer("one head leaves the mean of y", layer(z), mean)
        x, y, query = z[:, :-1, :-1], z[:, :-1, -1], z[:, -1, :-1]
        kernel = x @ x.mT + 0.4 * torch.eye(20, dtype=torch.float64)
        dual = ((query[:, None] @ x.mT) @ torch.linalg.solve(kernel, y[..., None]))[:, 0, 0]
        yield KnownAnswer("ridge regression in its dual form", ridge(z, 0.4), dual)
        target = 0.3 * step + y[:, 0]
        rate = torch.tensor(best_rate(step, target), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad((rate * step - target).square().mean(), rate)
        yield KnownAnswer("no better rate nearby", slope, 0.0)


def gradient_step(z: Float[Tensor, "b n c"]) -> Float[Tensor, "b"]:
    """1/L Σ_l x_l·x_q y_l: one step of gradient descent from β = 0 at rate 1."""
    x, y, query = _parts(z)
    return (((x @ query[..., None])[..., 0]) * y).mean(dim=1)


def debiased_gradient_step(z: Float[Tensor, "b n c"]) -> Float[Tensor, "b"]:
    """1/L Σ_l (x_l - x̄)·x_q y_l: the same with the mean taken out."""
    x, y, query = _parts(z)
    return ((((x - x.mean(dim=1, keepdim=True)) @ query[..., None])[..., 0]) * y).mean(dim=1)


def ridge(z: Float[Tensor, "b n c"], penalty: float) -> Float[Tensor, "b"]:
    """x_q·(XᵀX + penalty)⁻¹ Xᵀy: with penalty = noise · d the mean of β's posterior, and no predictor is
    better."""
    require(penalty > 0, f"penalty is {penalty}, but without one the examples may not settle the line")
    x, y, query = _parts(z)
    square = x.mT @ x + penalty * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return (query * torch.linalg.solve(square, x.mT @ y[..., None])[..., 0]).sum(dim=-1)


def best_rate(step: Float[Tensor, "b"], target: Float[Tensor, "b"]) -> float:
    """The η for which η · step is nearest to the targets."""
    return float((step * target).sum() / step.square().sum())


def _parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return z[:, :-1, :-1], z[:, :-1, -1], z[:, -1, :-1]
