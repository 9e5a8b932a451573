"""The residual stream of a language model, taken apart: what each head and each MLP adds to it.

    stream = embedding + Σ_layers (Σ_heads a_h + b_o + mlp)        x_L = stream, logits = U norm(x_L)

`Anatomy` finds the parts of a decoder (blocks, MLPs, last norm, unembedding); reading refuses where the sum
does not give the stream, as where a norm stands behind a block's sublayers (Gemma 2 and 3). With the norm's
scale held at what it was, the logits are linear in the parts: that is direct attribution (`logit_lens.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.host.host import host_of
from regardant.host.run import Run
from regardant.host.seam import Seam
from regardant.host.site import Site

NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")
MLPS = ("mlp", "feed_forward", "ffn")
ROOM = 1e-3
"""Of the stream's size: how far the parts may sum up to something else."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a decoder by name."""

    model: nn.Module
    sites: tuple[Site, ...]
    mlps: tuple[nn.Module, ...]
    norm: nn.Module
    unembedding: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        host = host_of(model)
        name = type(model).__name__
        sites = tuple(sorted((s for s in host.sites if not s.cross), key=lambda site: site.layer))
        require(
            len({site.stack for site in sites}) == 1 and all(site.block is not None for site in sites),
            f"{name} is not one stack of blocks, but a residual stream is taken apart in one",
        )
        mlps = [next((m for n in MLPS if (m := getattr(s.block, n, None)) is not None), None) for s in sites]
        require(None not in mlps, f"{name} has blocks without an MLP under a known name ({', '.join(MLPS)})")
        body = getattr(model, getattr(model, "base_model_prefix", "") or "model", model)
        body = getattr(body, "decoder", body)
        norm = next((m for n in NORMS if (m := getattr(body, n, None)) is not None), None)
        require(norm is not None, f"{name} has no last norm under a known name ({', '.join(NORMS)})")
        unembedding = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        require(unembedding is not None, f"{name} has no unembedding: a language model is wanted")
        return cls(model, sites, tuple(mlps), norm, unembedding)

    @property
    def layers(self) -> int:
        return len(self.sites)

    def read_out(self, stream: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        """What the model would say of a stream: the last norm, then the unembedding."""
        return self.unembedding(self.norm(stream))

    def output_weight(self, site: Site) -> Float[Tensor, "h c e"]:
        """The output projection, head by head."""
        projection = host_of(self.model).output_projection(site)
        weight = projection.weight.T if type(projection).__name__ == "Conv1D" else projection.weight
        return weight.unflatten(1, (site.q_heads, -1)).transpose(0, 1)

    def output_bias(self, site: Site) -> Tensor | None:
        return getattr(host_of(self.model).output_projection(site), "bias", None)


@dataclass(frozen=True)
class Parts:
    """What was added to the stream at the chosen rows, in the order in which it was."""

    embedding: Float[Tensor, "b m c"]
    heads: Float[Tensor, "l b h m c"]
    """Each head's output behind the output projection, its bias left out."""
    biases: Float[Tensor, "l c"]
    mlps: Float[Tensor, "l b m c"]
    last: Float[Tensor, "b m c"]
    """The stream before the last norm."""

    def after(self, layer: int) -> Float[Tensor, "b m c"]:
        """The stream as it leaves a layer; -1 is the embedding."""
        done = layer + 1
        return (
            self.embedding
            + self.heads[:done].sum((0, 2))
            + self.biases[:done].sum(0)
            + self.mlps[:done].sum(0)
        )


class _Reader:
    """Takes head outputs at the chosen rows, as they are before the projection."""

    def __init__(self, rows: Sequence[int] | slice) -> None:
        self.rows, self.found = rows, {}

    def stages(self, site: Site) -> frozenset[str]:
        return frozenset() if site.cross else frozenset(["heads"])

    def heads(self, heads: Tensor, site: Site, run: Run) -> Tensor:
        self.found[site.name] = heads[:, :, self.rows].detach()
        return heads


def read_parts(
    model: nn.Module, ids: Int[Tensor, "b n"], *, rows: Sequence[int] | slice = (-1,), **inputs: Any
) -> Parts:
    """One pass, and what every head and MLP added at these rows of it."""
    anatomy, rows = Anatomy.of(model), rows if isinstance(rows, slice) else list(rows)
    reader, seam = _Reader(rows), Seam.of(model)
    seam.enter([reader])
    try:
        with torch.no_grad(), watched(anatomy, rows) as seen:
            model(ids, **inputs)
    finally:
        seam.leave([reader])
    heads = torch.stack([
        torch.einsum("bhme,hce->bhmc", reader.found[site.name], anatomy.output_weight(site))
        for site in anatomy.sites
    ])  # fmt: skip
    zero = heads.new_zeros(heads.shape[-1])
    biases = [anatomy.output_bias(site) for site in anatomy.sites]
    parts = Parts(
        seen["embedding"], heads.detach(), torch.stack([zero if b is None else b.detach() for b in biases]),
        torch.stack([seen["mlp", layer] for layer in range(anatomy.layers)]), seen["last"],
    )  # fmt: skip
    gap = (parts.after(anatomy.layers - 1) - parts.last).norm() / parts.last.norm()
    require(
        float(gap) <= ROOM,
        f"the heads and MLPs of {type(model).__name__} do not sum up to its residual stream (off by "
        f"{float(gap):.1%}): something stands between them and the stream",
    )
    return parts


@contextmanager
def watched(anatomy: Anatomy, rows: Sequence[int] | slice) -> Iterator[dict[Any, Tensor]]:
    """Rows of the embedding, of what each MLP gives and of the stream behind each layer and the last one."""
    seen: dict[Any, Tensor] = {}

    def taking(name: Any):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            value = output if isinstance(output, Tensor) else output[0]
            seen[name] = value[:, rows].detach()

        return hook

    def entering(name: str):
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            seen[name] = value[:, rows].detach()

        return hook

    handles = [anatomy.sites[0].block.register_forward_pre_hook(entering("embedding"), with_kwargs=True)]
    for layer, (site, mlp) in enumerate(zip(anatomy.sites, anatomy.mlps)):
        handles.append(mlp.register_forward_hook(taking(("mlp", layer))))
        handles.append(site.block.register_forward_hook(taking(("layer", layer))))
    handles.append(anatomy.norm.register_forward_pre_hook(entering("last"), with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
