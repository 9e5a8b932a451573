"""Which tokens a classifier decided by: feature attributions (captum's, and LIME), and what attention says.

An explainer takes a model with `embed(tokens)` and `read(embedded, real)` (as in
`regardant.train.text_classifiers`), tokens [b, n] and a class for each sample, and gives a score for each
token, towards that class. Attributions are of the class's logit, and compare with the same reference:
padding's embedding in every place.

DeepLIFT and Deep SHAP are captum's: its rescale rule acts on modules (ReLU, Tanh), while products
(attention) and recurrences count as gradient times difference. LIME is a ridge regression of the class's
probability on which tokens were kept, weighted by how alike the masks are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require

Explainer = Callable[[nn.Module, Int[Tensor, "b n"], Int[Tensor, "b"]], Float[Tensor, "b n"]]
PAD = 0


class _FromEmbeddings(nn.Module):
    """The model as a module of embeddings, for captum; samples of one length and mask."""

    def __init__(self, model: nn.Module, real: Tensor):
        super().__init__()
        self.model, self.real = model, real

    def forward(self, embedded: Tensor) -> Tensor:
        return self.model.read(embedded, self.real.expand(len(embedded), -1))


def _each(explain: Callable[[_FromEmbeddings, Tensor, Tensor, int], Tensor]) -> Explainer:
    """An explainer of one sample (module, embedding, reference, class) for many, summed over the width."""

    def explainer(model: nn.Module, tokens: Tensor, target: Tensor) -> Tensor:
        rows = []
        for sample, wanted in zip(tokens, target.tolist()):
            embedded = model.embed(sample[None]).detach()
            reference = model.embed(torch.full_like(sample[None], PAD)).detach()
            module = _FromEmbeddings(model, (sample != PAD)[None])
            rows.append(explain(module, embedded, reference, wanted).detach().sum(-1)[0])
        return torch.stack(rows)

    return explainer


def integrated_gradients(*, steps: int = 30) -> Explainer:
    """(E - E₀) ⊙ ∫ ∇y along the straight line from the reference."""
    from captum.attr import IntegratedGradients

    return _each(
        lambda module, embedded, reference, target: IntegratedGradients(module).attribute(
            embedded, reference, target=target, n_steps=steps
        )
    )


def deep_lift() -> Explainer:
    """Differences to the reference, passed back by the rescale rule."""
    from captum.attr import DeepLift

    return _each(
        lambda module, embedded, reference, target: DeepLift(module).attribute(
            embedded, reference, target=target
        )
    )


def deep_shap(background: Float[Tensor, "k n c"]) -> Explainer:
    """DeepLIFT against each of several references, averaged."""
    from captum.attr import DeepLiftShap

    require(
        len(background) >= 2, f"background has {len(background)} references, but a mean is over at least 2"
    )
    return _each(
        lambda module, embedded, reference, target: DeepLiftShap(module).attribute(
            embedded, background, target=target
        )
    )


def gradient_shap(background: Float[Tensor, "k n c"], *, samples: int = 20, noise: float = 0.05) -> Explainer:
    """The mean of gradient times difference, at random points between noisy inputs and references.

    captum draws from the global generators: seed them around it (`regardant.train.fit.seeded`).
    """
    from captum.attr import GradientShap

    return _each(
        lambda module, embedded, reference, target: GradientShap(module).attribute(
            embedded, background, target=target, n_samples=samples, stdevs=noise
        )
    )


def lime(
    generator: torch.Generator, *, samples: int = 300, width: float = 0.25, penalty: float = 1.0
) -> Explainer:
    """Coefficients of a ridge regression on kept tokens; dropped ones become padding's embedding."""

    def explainer(model: nn.Module, tokens: Tensor, target: Tensor) -> Tensor:
        rows = torch.zeros(tokens.shape)
        for number, (sample, wanted) in enumerate(zip(tokens, target.tolist())):
            places = (sample != PAD).nonzero().flatten()
            kept = torch.rand(samples, len(places), generator=generator) < 0.5
            kept[0] = True
            embedded = model.embed(sample[None]).expand(samples, -1, -1).clone()
            embedded[:, places] *= kept[..., None]
            with torch.no_grad():
                found = model.read(embedded, (sample != PAD).expand(samples, -1)).softmax(-1)[:, wanted]
            rows[number, places] = weighted_ridge(kept, found, width=width, penalty=penalty).to(rows)
        return rows

    return explainer


def weighted_ridge(
    kept: Tensor, found: Float[Tensor, "s"], *, width: float, penalty: float
) -> Float[Tensor, "t"]:
    """Coefficients with an intercept, weighted by the kernel exp(-d² / width²) of the cosine distance to all
    tokens kept."""
    x = kept.double()
    distance = 1 - (x.mean(1)).sqrt()
    weight = torch.exp(-distance.square() / width**2)[:, None]
    mean_x, mean_y = (weight * x).sum(0) / weight.sum(), (weight[:, 0] * found).sum() / weight.sum()
    x, y = x - mean_x, found.double() - mean_y
    gram = (weight * x).mT @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, (weight * x).mT @ y)


def pooled_attention() -> Explainer:
    """The weights by which the states are pooled."""
    return lambda model, tokens, target: model.attention(tokens).detach()


def last_attention() -> Explainer:
    """The first token's row in the last layer, averaged over heads."""
    return lambda model, tokens, target: model.attention(tokens)[-1].mean(1)[:, 0].detach()


def rollout() -> Explainer:
    """Attention through all layers: the first row of Â_L ⋯ Â_1, with Â = (mean over heads of A + I) / 2."""

    def explainer(model: nn.Module, tokens: Tensor, target: Tensor) -> Tensor:
        maps = [layer.mean(1).detach() for layer in model.attention(tokens)]
        return rolled_out(maps)[:, 0]

    return explainer


def rolled_out(maps: list[Float[Tensor, "b n n"]]) -> Float[Tensor, "b n n"]:
    """The product of the maps, each mixed half and half with the identity."""
    whole = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype).expand_as(maps[0])
    for layer in maps:
        mixed = (layer + torch.eye(layer.shape[-1], dtype=layer.dtype)) / 2
        whole = mixed / mixed.sum(-1, keepdim=True) @ whole
    return whole
