"""What a language model would say after each layer, and what each of its parts says for or against a token.

    lens         log p_l = log softmax(U norm(x_l))                     the logit lens: with the last norm
    attribution  ⟨U_t, D (part)⟩,   D = the last norm with its scale held at what it was

Attributions of all parts to a token sum up to its logit; to a difference of two tokens, to that difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.lens.head_map import HeadMap
from regardant.lens.residual_stream import Anatomy, Parts, watched


def logit_lens(
    model: nn.Module, ids: Int[Tensor, "b n"], *, targets: Int[Tensor, "b"], row: int = -1
) -> Float[Tensor, "s b"]:
    """log p of each sample's target at one row: after the embedding, then after every layer. The last is what
    the model says."""
    anatomy = Anatomy.of(model)
    require(
        targets.shape == ids.shape[:1],
        f"targets is {list(targets.shape)}, but it is a token for each of {ids.shape[0]} texts",
    )
    with torch.no_grad(), watched(anatomy, [row]) as seen:
        model(ids)
    found = []
    # Behind the watch: reading out passes through the norm that is watched.
    with torch.no_grad():
        for name in ("embedding", *(("layer", layer) for layer in range(anatomy.layers - 1)), "last"):
            said = anatomy.read_out(seen[name][:, 0])
            said = said.log_softmax(-1, dtype=torch.promote_types(said.dtype, torch.float32))
            found.append(said.gather(1, targets.to(said.device)[:, None])[:, 0])
    return torch.stack(found)


@dataclass(frozen=True)
class Attribution:
    """What each part adds to a logit, or to a difference of two."""

    embedding: Float[Tensor, "b"]
    heads: Float[Tensor, "l b h"]
    biases: Float[Tensor, "l b"]
    mlps: Float[Tensor, "l b"]

    @property
    def total(self) -> Float[Tensor, "b"]:
        return self.embedding + self.heads.sum((0, 2)) + self.biases.sum(0) + self.mlps.sum(0)

    def head_map(self) -> HeadMap:
        """The mean over samples, head by head."""
        return HeadMap(self.heads.mean(1).double().cpu(), "direct attribution")


def direct_attribution(
    anatomy: Anatomy, parts: Parts, targets: Int[Tensor, "b"], *, against: Int[Tensor, "b"] | None = None,
    row: int = 0,
) -> Attribution:  # fmt: skip
    """How each part moves the logit of `targets` (less that of `against`), at one of the rows read."""
    require(
        getattr(anatomy.unembedding, "weight", None) is not None,
        f"the unembedding is {type(anatomy.unembedding).__name__}, which has no weight to read",
    )
    with torch.no_grad():
        rows = anatomy.unembedding.weight
        direction = rows[targets] if against is None else rows[targets] - rows[against]
        gain, centred = _linear(anatomy.norm, parts.last[:, row])
        toward = direction * gain
        if centred:
            toward = toward - toward.mean(-1, keepdim=True)
        offset = getattr(anatomy.norm, "bias", None)
        shift = 0.0 if offset is None else direction @ offset
        if (bias := getattr(anatomy.unembedding, "bias", None)) is not None:
            shift = shift + bias[targets] - (0 if against is None else bias[against])
        return Attribution(
            torch.einsum("bc,bc->b", parts.embedding[:, row], toward) + shift,
            torch.einsum("lbhc,bc->lbh", parts.heads[:, :, :, row], toward),
            torch.einsum("lc,bc->lb", parts.biases, toward),
            torch.einsum("lbc,bc->lb", parts.mlps[:, :, row], toward),
        )


def _linear(norm: nn.Module, stream: Float[Tensor, "b c"]) -> tuple[Float[Tensor, "b c"], bool]:
    """The last norm as a diagonal, at its scale on this stream; and whether it takes the mean out."""
    bias = getattr(norm, "bias", None)
    given = norm(stream) - (0 if bias is None else bias)
    centred = isinstance(norm, nn.LayerNorm)
    # A stream of ones through an RMS norm comes out as the norm's own weight.
    weight = norm.weight if centred else norm(torch.ones_like(stream))
    read = (stream - stream.mean(-1, keepdim=True) if centred else stream) * weight
    scale = (given * read).sum(-1, keepdim=True) / read.square().sum(-1, keepdim=True)
    gap = float((scale * read - given).norm() / given.norm())
    require(
        gap < 1e-3,
        f"the last norm is {type(norm).__name__}, which is not a scale times a weight (off by {gap:.1%})",
    )
    return scale * weight, centred
