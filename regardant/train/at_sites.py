"""Training at the sites of a frozen model: layers that learn from what its attention does, each by itself.

The model reads text as it is; at each site a module is given the attention's call and what came out, and says
its loss. No gradient passes from site to site, and none through the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.host.call import Call
from regardant.host.run import Run
from regardant.host.seam import Seam
from regardant.host.site import Site
from regardant.train.fit import Fitted, Progress, fit
from regardant.train.texts import Texts

SiteLoss = Callable[[Call, Float[Tensor, "b h m e"]], Float[Tensor, ""]]
"""What an attention was asked and what it gave → how far off a site's module is."""


class AtSites(nn.Module):
    """Tokens → the losses of all sites [sites]. Only `trained`, by the names of sites, are its parameters."""

    def __init__(self, model: nn.Module, trained: Mapping[str, nn.Module], losses: Mapping[str, SiteLoss]):
        super().__init__()
        self.trained = nn.ModuleList(trained.values())
        self._model, self._losses = (model,), dict(losses)  # in a tuple: not a part of this

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self._losses)

    def forward(self, tokens: Tensor) -> Float[Tensor, "sites"]:
        (model,) = self._model
        reader = _Reader(self._losses, grad=torch.is_grad_enabled())
        given = {"input_ids": tokens.to(next(model.parameters()).device)}
        for name, value in (("use_cache", False), ("logits_to_keep", 1)):
            if name in inspect.signature(model.forward).parameters:
                given[name] = value
        modes = [(module, module.training) for module in model.modules()]
        Seam.of(model).enter([reader])
        try:
            model.eval()
            self.trained.train(self.training)
            with torch.no_grad():
                model(**given)
        finally:
            Seam.of(model).leave([reader])
            for module, mode in modes:
                module.training = mode
        missing = [name for name in self._losses if name not in reader.found]
        require(not missing, f"reading text did not come by {', '.join(missing)}")
        return torch.stack([reader.found[name] for name in self._losses])


class _Reader:
    """Takes part where losses are wanted."""

    def __init__(self, losses: Mapping[str, SiteLoss], *, grad: bool):
        self._losses, self._grad = losses, grad
        self.found: dict[str, Tensor] = {}

    def stages(self, site: Site) -> frozenset[str]:
        return frozenset(["read"] if site.name in self._losses else [])

    def read(self, call: Call, heads: Tensor, weights: Tensor | None, site: Site, run: Run) -> None:
        with torch.set_grad_enabled(self._grad):
            self.found[site.name] = self._losses[site.name](call, heads)


def fit_at_sites(
    model: nn.Module, trained: Mapping[str, nn.Module], losses: Mapping[str, SiteLoss], texts: Texts,
    *, steps: int, batch: int, learning_rate: float, seed: int, progress: Progress | None = None,
    checkpoint: Path | None = None, checkpoint_every: int = 50,
) -> Fitted:  # fmt: skip
    """Train the modules of all sites at once; a training with a `checkpoint` that was killed goes on."""
    require(
        any(each.requires_grad for module in trained.values() for each in module.parameters()),
        "there is nothing to train: no module has parameters of its own",
    )
    return fit(
        AtSites(model, trained, losses), texts, steps=steps, batch=batch, learning_rate=learning_rate,
        seed=seed, device=next(model.parameters()).device, progress=progress, checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip


@torch.no_grad()
def losses_at_sites(
    model: nn.Module, trained: Mapping[str, nn.Module], losses: Mapping[str, SiteLoss], texts: Texts
) -> dict[str, float]:
    """The mean loss of every site over windows at even distances."""
    reading = AtSites(model, trained, losses).eval()
    found = torch.stack([reading(tokens) for tokens, _ in texts.validation()])
    return dict(zip(reading.sites, found.mean(0).tolist()))
