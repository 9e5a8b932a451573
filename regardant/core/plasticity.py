"""Rules by which a matrix S [d, e] learns what follows what, a pair of key k and value v after the other:

    hebb    S ← S + η k vᵀ                        what fires together; read by qᵀS it is linear attention
    decay   S ← (1 - λ) S + η k vᵀ                and fades
    oja     S ← S diag(exp(-η v²)) + η k vᵀ       and is held in bounds by what it is told
    delta   S ← S + η k (v - kᵀS)ᵀ                only what was not foreseen: Rescorla and Wagner's rule

Oja's is usually written S - η S diag(v²) + η k vᵀ, which overshoots where η v² > 1; the exponential is the
same rule in continuous time. The delta rule is stable for 0 < η ‖k‖² < 2. Nothing is divided by a sum of
weights. `associate` runs n pairs in time linear in n, chunk by chunk.
"""

from __future__ import annotations

from math import log1p
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.decayed_linear import decayed_linear
from regardant.core.delta_rule import delta_rule
from regardant.core.errors import require, unknown
from regardant.core.surprise import between, since

Plasticity = Literal["hebb", "decay", "oja", "delta"]

OJA_CHUNK = 16
"""Tokens whose shares in each other are written out for every channel at once."""


def check_plasticity(rule: str, rate: float, forget: float) -> None:
    if rule not in get_args(Plasticity):
        raise unknown("plasticity rule", rule, get_args(Plasticity))
    require(rate > 0, f"rate is {rate}, but a rule that learns has a positive one")
    require(rule != "delta" or rate < 2, f"rate is {rate}, but the delta rule diverges from 2 on")
    require(0 <= forget < 1, f"forget is {forget}, but a memory loses a share from 0 up to, not with, 1")
    require(
        rule == "decay" or forget == 0,
        f"forget is {forget}, but {rule!r} forgets nothing by itself: that is the rule 'decay'",
    )


def written(
    state: Float[Tensor, "*b d e"], k: Float[Tensor, "*b d"], v: Float[Tensor, "*b e"], rule: Plasticity,
    *, rate: float, forget: float = 0.0,
) -> Float[Tensor, "*b d e"]:  # fmt: skip
    """S with one more pair in it."""
    if rule == "decay":
        state = (1 - forget) * state
    if rule == "oja":
        state = state * torch.exp(-rate * v.square())[..., None, :]
    if rule == "delta":
        v = v - (k[..., None, :] @ state)[..., 0, :]
    return state + rate * k[..., :, None] * v[..., None, :]


def associate(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"], rule: Plasticity,
    *, rate: float, forget: float = 0.0, state: Float[Tensor, "b h d e"] | None = None,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h d e"]]:  # fmt: skip
    """qᵀS behind every pair, and the last S."""
    kind, exact = v.dtype, torch.promote_types(v.dtype, torch.float32)
    q, k, v = q.to(exact), k.to(exact), v.to(exact)
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state
    if rule == "delta":
        out, last = delta_rule(q, k, v, q.new_full(q.shape[:3], rate), state=state[:, :, None])
        last = last[:, :, 0]
    elif rule == "oja":
        out, last = _oja(q, k, v, rate, state)
    else:
        fades = None if forget == 0 else q.new_full(q.shape[1:2], log1p(-forget))
        out, last = decayed_linear(q, rate * k, v, fades, state=state, return_state=True)
    return out.to(kind), last


def associate_plainly(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"], rule: Plasticity,
    *, rate: float, forget: float = 0.0, state: Float[Tensor, "b h d e"] | None = None,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h d e"]]:  # fmt: skip
    """The same, pair by pair."""
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state
    outs = []
    for t in range(q.shape[2]):
        state = written(state, k[:, :, t], v[:, :, t], rule, rate=rate, forget=forget)
        outs.append((q[:, :, t, None] @ state)[:, :, 0])
    return torch.stack(outs, dim=2), state


def _oja(
    q: Tensor, k: Tensor, v: Tensor, rate: float, state: Tensor
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h d e"]]:
    """Each channel of the values fades at its own pace, so each has its own triangle of shares."""
    outs = []
    for q_i, k_i, v_i in zip(*(x.split(OJA_CHUNK, dim=2) for x in (q, k, v))):
        fades = -rate * v_i.square().mT
        shares = between(fades)
        within = ((q_i @ k_i.mT)[:, :, None] * shares) @ (rate * v_i).mT[..., None]
        left = since(fades).mT
        outs.append((q_i @ state) * left + within[..., 0].mT)
        state = state * left[:, :, -1:, :] + k_i.mT @ (rate * v_i * shares[..., -1, :].mT)
    return torch.cat(outs, dim=2), state
