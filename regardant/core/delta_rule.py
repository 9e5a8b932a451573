"""The delta rule with momentum and forgetting: a matrix that is corrected by its own errors.

    e_t = v_t - k_tᵀ W_{t-1}        S_t = η_t S_{t-1} + β_t k_t e_tᵀ        W_t = γ_t W_{t-1} + S_t

and q_tᵀ W_t is read. With η = 0 and γ = 1 it is the rule of Widrow and Hoff, Rescorla and Wagner, and
DeltaNet (Schlag et al., 2021, arXiv:2102.11174); as a whole it is the memory of Titans where that is one
matrix and every token takes its gradient at the weights just before it (β = 2θ). Stable for 0 < β ‖k‖² < 2.

An error depends on all errors before it, but linearly. In a chunk, with the shares of
`regardant.core.surprise` and B the matrices before it,

    e_t + Σ_{s<t} A_{t-1,s} β_s (k_t·k_s) e_s = v_t - Σ_o before_{t-1,o} k_tᵀ B_o

is one triangular system, solved for all chunks at once; then the chunks are walked with a few products each
(Yang et al., 2024, arXiv:2406.06484, for η = 0). Linear in the length.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.surprise import Gates, Shares, standing_still


def delta_rule(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"],
    rate: Float[Tensor, "b h n"], log_keep: Float[Tensor, "b h n"] | None = None,
    log_momentum: Float[Tensor, "b h n"] | None = None, *, state: Float[Tensor, "b h o d e"] | None = None,
    real: Bool[Tensor, "b n"] | None = None, chunk: int = 32,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h o d e"]]:  # fmt: skip
    """What is read at every token, and W (with momentum W and S) behind the last.

    `rate` is β, `log_keep` is log γ (None: nothing is forgotten), `log_momentum` is log η (None: no
    momentum). Tokens that are not `real` change nothing. `chunk` changes the speed and nothing else.
    """
    require(chunk >= 1, f"chunk is {chunk}, but a chunk holds at least one token")
    q, k, v, gates, state = _prepared(q, k, v, rate, log_keep, log_momentum, state)
    gates, flows = standing_still(gates, real)
    n, outs = q.shape[2], []
    whole = n - n % chunk
    for start, end, size in ((0, whole, chunk), (whole, n, n - whole)):
        if start == end:
            continue
        logs = (gates.log_keep, gates.log_momentum, flows)
        cut = [None if x is None else x[:, :, start:end].unflatten(2, (-1, size)) for x in logs]
        tokens = (x[:, :, start:end].unflatten(2, (-1, size)) for x in (q, k, v, gates.rate))
        out, state = _walk(*tokens, Shares.over(*cut), state)
        outs.append(out)
    return torch.cat(outs, dim=2), state


def delta_rule_reference(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"],
    rate: Float[Tensor, "b h n"], log_keep: Float[Tensor, "b h n"] | None = None,
    log_momentum: Float[Tensor, "b h n"] | None = None, *, state: Float[Tensor, "b h o d e"] | None = None,
    real: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h o d e"]]:  # fmt: skip
    """The recurrence as it stands."""
    q, k, v, gates, state = _prepared(q, k, v, rate, log_keep, log_momentum, state)
    outs, matrix, moving = [], state[:, :, 0], state[:, :, -1]
    for t in range(q.shape[2]):
        row = k[:, :, t, None]
        error = v[:, :, t, None] - row @ matrix
        write = gates.rate[:, :, t, None, None] * row.mT @ error
        stay = 0 if log_momentum is None else gates.log_momentum[:, :, t, None, None].exp()
        here = torch.ones(len(q), dtype=torch.bool, device=q.device) if real is None else real[:, t]
        here = here[:, None, None, None]
        moving = torch.where(here, stay * moving + write, moving)
        matrix = torch.where(here, gates.log_keep[:, :, t, None, None].exp() * matrix + moving, matrix)
        outs.append((q[:, :, t, None] @ matrix)[:, :, 0])
    last = [matrix] if log_momentum is None else [matrix, moving]
    return torch.stack(outs, dim=2), torch.stack(last, dim=2)


def _walk(
    q: Float[Tensor, "b h m c d"], k: Float[Tensor, "b h m c d"], v: Float[Tensor, "b h m c e"],
    rate: Float[Tensor, "b h m c"], shares: Shares, state: Float[Tensor, "b h o d e"],
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h o d e"]]:  # fmt: skip
    """m chunks of c tokens: everything that needs no state for all of them, the rest one by one."""
    orders = state.shape[2]
    first = torch.zeros_like(shares.before[..., :1, :])
    first[..., 0] = 1
    ahead = torch.cat([first, shares.before[..., :-1, :]], dim=-2)
    landed = torch.cat([torch.zeros_like(shares.landed[..., :1, :]), shares.landed[..., :-1, :]], dim=-2)
    system = (k @ k.mT) * landed * rate[..., None, :]
    sides = torch.cat([_rows(k, ahead), v], dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    known, wanted = solved.split([orders * k.shape[-1], v.shape[-1]], dim=-1)
    read, met = _rows(q, shares.before), (q @ k.mT) * shares.landed * rate[..., None, :]
    writes = (_rows(k, shares.last) * rate[..., None]).mT
    outs = []
    for chunk in zip(*(x.unbind(2) for x in (known, wanted, read, met, writes, shares.passing))):
        known_i, wanted_i, read_i, met_i, writes_i, passing_i = chunk
        before = state.flatten(2, 3)
        errors = wanted_i - known_i @ before
        outs.append(read_i @ before + met_i @ errors)
        state = (passing_i @ state.flatten(3)).view(state.shape) + (writes_i @ errors).view(state.shape)
    return torch.cat(outs, dim=2), state


def _rows(x: Float[Tensor, "*b c d"], shares: Float[Tensor, "*b c o"]) -> Float[Tensor, "*b c o*d"]:
    """Each row once for each of its shares, side by side."""
    return (shares[..., None] * x[..., None, :]).flatten(-2)


def _prepared(q, k, v, rate, log_keep, log_momentum, state):
    """In an accuracy that bears long sums, with what was left out filled in, and everything of one shape."""
    (b, h, n, d), e = q.shape, v.shape[-1]
    require(n >= 1, "there is no token to write: the length is 0")
    require(
        k.shape == q.shape and v.shape[:3] == q.shape[:3],
        f"k is {list(k.shape)} and v {list(v.shape)}, but q is {list(q.shape)}: they are of the same tokens",
    )
    for name, gate in (("rate", rate), ("log_keep", log_keep), ("log_momentum", log_momentum)):
        require(
            gate is None or gate.shape == (b, h, n),
            f"{name} is {None if gate is None else list(gate.shape)}, but there is one a token: {[b, h, n]}",
        )
    exact = torch.promote_types(q.dtype, torch.float32)
    orders = 1 if log_momentum is None else 2
    if state is None:
        state = torch.zeros(b, h, orders, d, e, dtype=exact, device=q.device)
    require(
        state.shape == (b, h, orders, d, e),
        f"state is {list(state.shape)}, but these tokens go on from {[b, h, orders, d, e]}: "
        "it is from another configuration",
    )
    log_keep = torch.zeros_like(rate) if log_keep is None else log_keep
    gates = Gates(*(None if x is None else x.to(exact) for x in (rate, log_keep, log_momentum)))
    return q.to(exact), k.to(exact), v.to(exact), gates, state.to(exact)
