"""Linear probes: what can be read off the residual stream, layer by layer.

Logistic regression with an L2 penalty on the states of one row (the last token's), standardised per layer
by the training part, since the size of states grows with depth and a few channels are huge. The penalty is
chosen on a part of the training samples that is held out; the score is on samples that no choice has seen.

    min_w  Σ_i log(1 + exp(-y_i (w·x_i + b))) + λ/2 ‖w‖²        y = ±1, b without a penalty

Newton's steps on the samples' own coordinates: with fewer samples than channels, w lies in their span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.host.host import host_of

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
STEPS, TOLERANCE = 25, 1e-8


@dataclass(frozen=True)
class Probe:
    """A linear reading of states [n, c]: above 0 is True."""

    weight: Float[Tensor, "c"]
    bias: float
    centre: Float[Tensor, "c"]
    scale: Float[Tensor, "c"]

    def __call__(self, states: Float[Tensor, "n c"]) -> Float[Tensor, "n"]:
        return ((states.double() - self.centre) / self.scale) @ self.weight + self.bias

    def accuracy(self, states: Float[Tensor, "n c"], labels: Bool[Tensor, "n"]) -> float:
        return float(((self(states) > 0) == labels).double().mean())

    def pattern(self, states: Float[Tensor, "n c"]) -> Float[Tensor, "c"]:
        """Where in the stream is written what it reads, as a unit vector: the covariance of the states with
        the reading. The weights themselves are no such thing, since they also cancel what is in the way."""
        read = self(states)
        along = (states.double() - states.double().mean(0)).T @ (read - read.mean())
        return along / along.norm()


def fit_probe(states: Float[Tensor, "n c"], labels: Bool[Tensor, "n"], *, penalty: float) -> Probe:
    """The probe of least penalised loss."""
    require(penalty > 0, f"penalty is {penalty}, but it is positive")
    require(
        labels.dtype == torch.bool and labels.shape == states.shape[:1],
        f"labels is {labels.dtype} {list(labels.shape)}, but it is bool, one a state of {len(states)}",
    )
    require(0 < int(labels.sum()) < len(labels), "labels are all the same: there is nothing to tell apart")
    states = states.double()
    centre, scale = states.mean(0), states.std(0, correction=0)
    scale = torch.where(scale > 1e-12 * (1 + centre.abs()), scale, 1.0)
    x = (states - centre) / scale
    # In the span of the samples: x = z basis, w = basisᵀ v.
    few = len(x) < x.shape[1]
    u, s, basis = torch.linalg.svd(x, full_matrices=False) if few else (None, None, None)
    z = u * s if few else x
    z = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
    ridge = torch.full((z.shape[1],), penalty, dtype=z.dtype)
    ridge[-1] = 1e-9
    y = labels.double()
    weight = torch.zeros_like(ridge)
    for _ in range(STEPS):
        p = torch.sigmoid(z @ weight)
        slope = z.T @ (p - y) + ridge * weight
        curve = (z * (p * (1 - p)).clamp(min=1e-9)[:, None]).T @ z + torch.diag(ridge)
        step = torch.linalg.solve(curve, slope)
        # Damped: with separable classes a full step may overshoot.
        weight = weight - step * min(1.0, 10 / (1e-12 + float(step.norm())))
        if float(step.norm()) <= TOLERANCE * (1 + float(weight.norm())):
            break
    own = weight[:-1] @ basis if few else weight[:-1]
    return Probe(own, float(weight[-1]), centre, scale)


def best_penalty(
    states: Float[Tensor, "n c"], labels: Bool[Tensor, "n"], *, generator: torch.Generator,
    penalties: Sequence[float] = PENALTIES,
) -> float:  # fmt: skip
    """The penalty whose probe is best on a quarter of the samples that it was not fitted to; the larger one
    of equals."""
    order = torch.randperm(len(states), generator=generator)
    held, rest = order[: len(order) // 4], order[len(order) // 4 :]
    scores = [
        (fit_probe(states[rest], labels[rest], penalty=each).accuracy(states[held], labels[held]), each)
        for each in penalties
    ]
    return max(scores)[1]


def layer_states(
    model: nn.Module, ids: Sequence[Int[Tensor, "n"]], *, row: int = -1, batch: int = 16
) -> Float[Tensor, "s b c"]:
    """The residual stream behind the embedding and behind every layer, at one row of each text. Texts of one
    length are read together, so that none is padded."""
    blocks = [site.block for site in host_of(model).sites if not site.cross]
    require(
        None not in blocks and len(blocks) > 0,
        f"{type(model).__name__} has no blocks whose stream could be read",
    )
    by_length: dict[int, list[int]] = {}
    for place, text in enumerate(ids):
        by_length.setdefault(len(text), []).append(place)
    found: list[Tensor | None] = [None] * len(ids)
    seen: dict[int, Tensor] = {}

    def behind(layer: int):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[layer] = (output if isinstance(output, Tensor) else output[0])[:, row].detach().float().cpu()

        return hook

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        seen[-1] = stream[:, row].detach().float().cpu()

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.register_forward_hook(behind(layer)) for layer, block in enumerate(blocks)]
    device = next(model.parameters()).device
    body = getattr(model, getattr(model, "base_model_prefix", "") or "model", model)
    try:
        with torch.no_grad():
            for places in by_length.values():
                for start in range(0, len(places), batch):
                    part = places[start : start + batch]
                    # Without the unembedding, which would cost as much as several layers.
                    body(torch.stack([ids[place] for place in part]).to(device))
                    states = torch.stack([seen[layer] for layer in range(-1, len(blocks))])
                    for at, place in enumerate(part):
                        found[place] = states[:, at]
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found, dim=1)


def probe_layers(
    states: Float[Tensor, "s b c"], labels: Bool[Tensor, "b"], train: Bool[Tensor, "b"], *,
    generator: torch.Generator, penalties: Sequence[float] = PENALTIES,
) -> Float[Tensor, "s"]:  # fmt: skip
    """Accuracy of a probe at every layer, fitted on the samples of `train`, scored on the others."""
    require(
        train.dtype == torch.bool and 0 < int(train.sum()) < len(train),
        "train marks all samples or none, but some are to fit and some to score",
    )
    scores = []
    for own in states:
        penalty = best_penalty(own[train], labels[train], generator=generator, penalties=penalties)
        probe = fit_probe(own[train], labels[train], penalty=penalty)
        scores.append(probe.accuracy(own[~train], labels[~train]))
    return torch.tensor(scores, dtype=torch.float64)


def known_probes(generator: torch.Generator) -> Iterator[KnownAnswer]:
    """A feature planted at a layer is read there and behind, along its direction, and not before."""
    from regardant.world.planted import feature_direction, planted_feature

    layer = int(torch.randint(1, 4, (1,), generator=generator))
    model = planted_feature(moving=(layer, 1), generator=generator)
    labels = torch.arange(120) % 2 == 0
    ids = []
    for label in labels.tolist():
        text = torch.randint(3, 24, (8,), generator=generator)
        text[0], text[int(torch.randint(1, 6, (1,), generator=generator))] = 0, 1 if label else 2
        text[-1] = 5
        ids.append(text)
    states = layer_states(model, ids)
    scores = probe_layers(states, labels, torch.arange(120) < 80, generator=generator)
    known = scores[layer + 1 :]
    yield KnownAnswer("read perfectly from the layer that writes it on", known, torch.ones_like(known))
    guess = scores[: layer + 1]
    yield KnownAnswer("not to be read before", guess, torch.full_like(guess, 0.5), tolerance=0.2)
    probe = fit_probe(states[layer + 1], labels, penalty=1.0)
    along = (probe.pattern(states[layer + 1]) @ feature_direction(model)).abs()
    yield KnownAnswer("along the direction that was planted", along, 1.0, tolerance=0.05)
