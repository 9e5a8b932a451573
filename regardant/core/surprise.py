"""A memory that learns while it reads: an MLP whose weights take a gradient step a token.

For weights W, keys k and values v, with a rate θ, a momentum η and a share γ that is kept,

    S_t = η_t S_{t-1} - θ_t ∇_W ‖M_W(k_t) - v_t‖²          W_t = γ_t W_{t-1} + S_t

the gradient taken at the weights with which t's chunk of tokens began, a layer's shortened to a length of
`clip` where it is longer; and what is read at t is M_{W_t}(q_t) (Behrouz et al., Titans, 2025,
arXiv:2501.00663, section 3.2). M_W(x) = W_L σ(… σ(W_1 x)), σ = SiLU; one layer is a matrix.

No token's weights are ever formed. The gradient of a layer at a token is an outer product a_t δ_tᵀ of what
enters the layer and the error that comes back, and both recurrences are linear, so that in a chunk

    W_t   = κ_t W_0   + μ_t S_0   + Σ_{s≤t} A_ts a_s δ_sᵀ
    x W_t = κ_t x W_0 + μ_t x S_0 + Σ_{s≤t} A_ts (x·a_s) δ_sᵀ

with numbers κ, μ and A of the gates alone (`Shares`): a masked product over the chunk, layer by layer.
That costs time linear in the length, and memory of a state a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.state import State

Weights = tuple[Tensor, ...]
"""One matrix [b, h, d, e] a layer; they multiply rows from the right."""


@dataclass
class MemoryState(State):
    """What is remembered: for each layer its weights and, behind them, their momentum where there is one,
    [b, h, 1 or 2, d, e]; and the weights with which the chunk began."""

    layers: tuple[Tensor, ...]
    begun: Weights

    @classmethod
    def of(cls, weights: Sequence[Tensor], batch: int, *, momentum: bool) -> MemoryState:
        """A memory of these first weights [h, d, e], the same for each sample."""
        still = [[torch.zeros_like(weight)] * momentum for weight in weights]
        layers = [torch.stack([weight, *rest], dim=1) for weight, rest in zip(weights, still)]
        first = tuple(layer.expand(batch, *layer.shape) for layer in layers)
        return cls(0, first, tuple(layer[:, :, 0] for layer in first))

    @property
    def weights(self) -> Weights:
        return tuple(layer[:, :, 0] for layer in self.layers)


@dataclass(frozen=True)
class Gates:
    """How a token writes [b, h, n]: θ, log γ and log η (None: no momentum)."""

    rate: Tensor
    log_keep: Tensor
    log_momentum: Tensor | None


@dataclass(frozen=True)
class Shares:
    """What a run of c tokens makes of the o tensors before it (weights, momentum) and of its own writes.

    W_t = Σ_o before_to before_o + Σ_{s≤t} landed_ts write_s, and behind the run tensor p is
    Σ_o passing_po before_o + Σ_s last_sp write_s.
    """

    before: Float[Tensor, "*b c o"]
    landed: Float[Tensor, "*b c c"]
    passing: Float[Tensor, "*b o o"]
    last: Float[Tensor, "*b c o"]

    @classmethod
    def over(
        cls, log_keep: Float[Tensor, "*b c"], log_momentum: Float[Tensor, "*b c"] | None = None,
        real: Float[Tensor, "*b c"] | None = None,
    ) -> Shares:  # fmt: skip
        """`real` is 0 where a token leaves everything as it is; its gates are 1 then."""
        kept, landed = since(log_keep), between(log_keep)
        if real is not None:
            landed = landed * real[..., None, :]
        if log_momentum is None:
            return cls(kept[..., None], landed, kept[..., -1:, None], landed[..., -1, :, None])
        lasting, moving = since(log_momentum), between(log_momentum)
        before = torch.stack([kept, (landed @ lasting[..., None])[..., 0]], dim=-1)
        landed, end = landed @ moving, lasting[..., -1]
        passing = torch.stack([before[..., -1, :], torch.stack([torch.zeros_like(end), end], -1)], dim=-2)
        return cls(before, landed, passing, torch.stack([landed[..., -1, :], moving[..., -1, :]], dim=-1))

    def unbind(self, dim: int) -> list[Shares]:
        """One a chunk."""
        parts = (self.before, self.landed, self.passing, self.last)
        return [Shares(*each) for each in zip(*(part.unbind(dim) for part in parts))]


def since(log_gate: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    """g_1 ⋯ g_t."""
    return log_gate.cumsum(-1).exp()


def between(log_gate: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c c"]:
    """g_{s+1} ⋯ g_t for s ≤ t, and 0 above: each sum of logs taken by itself, so that none cancels."""
    count = log_gate.shape[-1]
    after = log_gate[..., None].expand(*log_gate.shape, count).tril(-1).cumsum(-2)
    return after.exp().tril()


def recall(weights: Weights, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n e"]:
    """M_W(x), the same weights for every token."""
    for weight in weights[:-1]:
        x = F.silu(x @ weight)
    return x @ weights[-1]


def memorise(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"], gates: Gates,
    state: MemoryState, *, chunk: int, clip: float | None = None, real: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b h n e"], MemoryState]:  # fmt: skip
    """Write n tokens, one after the other, and read after each what it asks for.

    The running chunk goes on where the state left it. Tokens that are not `real` change nothing.
    """
    check(q, k, v, gates, state)
    require(chunk >= 1, f"chunk is {chunk}, but a chunk holds at least one token")
    gates, flows = standing_still(gates, real)
    layers, begun = state.layers, state.begun
    shares = _chunks(gates, flows, state.length, chunk)
    sizes = [share.landed.shape[-1] for share in shares]
    # Split once: a slice a chunk would fill a whole sequence with zeros for each on the way back.
    own = zip(*(x.split(sizes, dim=2) for x in (q, k, v, 2 * gates.rate[..., None])))
    outs, end = [], state.length
    for size, share, tokens in zip(sizes, shares, own):
        out, layers = _write_and_read(*tokens, share, layers, begun, clip)
        outs.append(out)
        end += size
        if end % chunk == 0:
            begun = tuple(layer[:, :, 0] for layer in layers)
    return torch.cat(outs, dim=2), MemoryState(end, layers, begun)


def memorise_plainly(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"], gates: Gates,
    state: MemoryState, *, chunk: int, clip: float | None = None, real: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b h n e"], MemoryState]:  # fmt: skip
    """The equations token by token, the gradient by automatic differentiation: the oracle."""

    def surprise(weights: Weights, k_t: Tensor, v_t: Tensor) -> Tensor:
        return (recall(weights, k_t) - v_t).square().sum()

    outs, begun, orders = [], state.begun, state.layers[0].shape[2]
    weights, momentum = ([layer[:, :, order] for layer in state.layers] for order in (0, orders - 1))
    for t in range(q.shape[2]):
        at = slice(t, t + 1)
        slopes = torch.func.grad(surprise)(begun, k[:, :, at], v[:, :, at])
        if clip is not None:
            lengths = [slope.norm(dim=(-2, -1), keepdim=True) for slope in slopes]
            slopes = tuple(slope * clip / length.clamp(min=clip) for slope, length in zip(slopes, lengths))
        rate, keep = gates.rate[..., at, None], gates.log_keep[..., at, None].exp()
        stay = 0 if gates.log_momentum is None else gates.log_momentum[..., at, None].exp()
        surprised = [stay * s - rate * slope for s, slope in zip(momentum, slopes)]
        learned = [keep * w + s for w, s in zip(weights, surprised)]
        if real is not None:
            here = real[:, t, None, None, None]
            surprised = [torch.where(here, new, old) for new, old in zip(surprised, momentum)]
            learned = [torch.where(here, new, old) for new, old in zip(learned, weights)]
        weights, momentum = learned, surprised
        outs.append(recall(weights, q[:, :, at]))
        if (state.length + t + 1) % chunk == 0:
            begun = tuple(weights)
    layers = tuple(torch.stack(both[:orders], dim=2) for both in zip(weights, momentum))
    return torch.cat(outs, dim=2), MemoryState(state.length + q.shape[2], layers, begun)


def standing_still(gates: Gates, real: Bool[Tensor, "b n"] | None) -> tuple[Gates, Tensor | None]:
    """Gates that keep everything where a token is not real, and 1 where it is."""
    if real is None:
        return gates, None
    flows = real[:, None].to(gates.rate.dtype).expand(gates.rate.shape)
    momentum = None if gates.log_momentum is None else gates.log_momentum * flows
    return Gates(gates.rate * flows, gates.log_keep * flows, momentum), flows


def _chunks(gates: Gates, flows: Tensor | None, length: int, chunk: int) -> list[Shares]:
    """The shares of what is left of the running chunk, of each whole chunk, and of what is left over."""
    n = gates.rate.shape[-1]
    first = min(n, -length % chunk)
    last = n - (n - first) % chunk
    shares = []
    for start, end, size in ((0, first, first), (first, last, chunk), (last, n, n - last)):
        if start < end:
            logs = (gates.log_keep, gates.log_momentum, flows)
            parts = (None if x is None else x[..., start:end].unflatten(-1, (-1, size)) for x in logs)
            shares += Shares.over(*parts).unbind(2)
    return shares


def _write_and_read(
    q: Tensor, k: Tensor, v: Tensor, step: Tensor, shares: Shares, layers: tuple[Tensor, ...],
    begun: Weights, clip: float | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """One run of tokens whose gradients are all taken at `begun`; `step` is 2θ."""
    entered, slopes, x = [k], [], k
    for weight in begun[:-1]:
        z = x @ weight
        gate = torch.sigmoid(z)
        x = z * gate
        slopes.append(gate * (1 + z - x))
        entered.append(x)
    errors = [v - x @ begun[-1]]
    for weight, slope in zip(begun[:0:-1], reversed(slopes)):
        errors.append((errors[-1] @ weight.mT) * slope)
    x, new = q, []
    for layer, a, error in zip(layers, entered, reversed(errors)):
        error = error * (step if clip is None else step * _shortening(a, error, clip))
        x = F.silu(x) if new else x
        x = _rows(x, shares.before) @ layer.flatten(2, 3) + ((x @ a.mT) * shares.landed) @ error
        gained = _rows(a, shares.last).mT @ error
        new.append((shares.passing @ layer.flatten(3) + gained.view(*layer.shape[:3], -1)).view(layer.shape))
    return x, tuple(new)


def _rows(x: Float[Tensor, "b h c d"], shares: Float[Tensor, "b h c o"]) -> Float[Tensor, "b h c o*d"]:
    """Each row once for each of its shares, side by side: one product then serves weights and momentum."""
    return (shares[..., None] * x[..., None, :]).flatten(3)


def _shortening(a: Tensor, error: Tensor, clip: float) -> Float[Tensor, "b h c 1"]:
    """clip / ‖2 a errorᵀ‖ where that is below 1; squared until the end, since a root has no slope at 0."""
    length = 4 * a.square().sum(-1, keepdim=True) * error.square().sum(-1, keepdim=True)
    return (length / clip**2).clamp(min=1).rsqrt()


def check(q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: MemoryState) -> None:
    """Whether a state was made for such queries and values."""
    (b, h, n, d), e = q.shape, v.shape[-1]
    require(n >= 1, "there is no token to write: the length is 0")
    require(
        k.shape == q.shape and v.shape[:3] == q.shape[:3],
        f"k is {list(k.shape)} and v {list(v.shape)}, but q is {list(q.shape)}: they are of the same tokens",
    )
    first, last = state.layers[0], state.layers[-1]
    require(
        (*first.shape[:2], first.shape[3]) == (b, h, d) and last.shape[4] == e,
        f"state has layers {list(first.shape)} to {list(last.shape)}, but {b} samples of {h} heads, keys of "
        f"{d} and values of {e} come: it is from another configuration",
    )
    require(
        (gates.log_momentum is None) == (first.shape[2] == 1),
        f"state has {first.shape[2]} tensors a layer, but with momentum there are 2, and 1 without",
    )
