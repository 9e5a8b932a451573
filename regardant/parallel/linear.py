"""Linear attention over ranks: only states of d × e numbers a head travel, however long the sequence.

Rank t of W holds n tokens. With r counted from 0 in its part and the decay λ a head (1: none),

    M_t = Σ_r λ^(n-1-r) k_r v_rᵀ             P_t = Σ_{s<t} λ^(n(t-1-s)) M_s + λ^(nt) S
    o_r = λ^(r+1) q_r P_t + Σ_{s≤r} λ^(r-s) (q_r·k_s) v_s

and backward G_t = Σ_r λ^(r+1) q_r dO_rᵀ, D_t = Σ_{s>t} λ^(n(s-t-1)) G_s, which enter the sweeps of
`regardant.core.decayed_linear` as the state before the part and as the gradient of the one behind it. S
is what an earlier segment left. Without a mask, every query meets M = Σ_s M_s.

How the states get round is an `Exchange`: `AllGather` (LASP-2: one collective each way, all of P_t or D_t
worked out locally) or `Ring` (LASP: from rank to rank, each waiting for the one before it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.decay_tiles import SMALLEST_LOG
from regardant.core.decayed_linear import check_operands, sum_dtype, sweep_left, sweep_right
from regardant.core.decayed_rule import DecayedState
from regardant.core.errors import require
from regardant.parallel.exchange import Pending, gather

BLOCK = 64
State = Float[Tensor, "b h d e"]


class Exchange(Protocol):
    """How states get from rank to rank."""

    def begin(
        self, own: State, first: State, fade: Float[Tensor, "h 1 1"], group: dist.ProcessGroup, *, back: bool
    ) -> Callable[[], tuple[State, State]]:
        """Hand over what this rank's part adds to a state that every part multiplies by `fade`.

        Waited for, it gives the state that this part meets, where the first part meets `first`, and the
        state behind the last part. `back` turns the order of the ranks round.
        """


class AllGather:
    """Everybody's states to everybody, in one collective that goes on while something else is done."""

    def begin(self, own, first, fade, group, *, back):
        waiting = gather(own, group)
        at = group.size() - 1 - group.rank() if back else group.rank()

        def wait() -> tuple[Tensor, Tensor]:
            states = waiting()
            met = state = first
            for place, gained in enumerate(states.flip(0) if back else states):
                met = state if place == at else met
                state = torch.addcmul(gained, state, fade)
            return met, state

        return wait


class Ring:
    """The state from each rank to the next, which has to wait for all before it."""

    def begin(self, own, first, fade, group, *, back):
        rank, step = group.rank(), -1 if back else 1
        ends = (group.size() - 1, 0) if back else (0, group.size() - 1)

        def wait() -> tuple[Tensor, Tensor]:
            met = first
            if rank != ends[0]:
                met = torch.empty_like(own)
                dist.recv(met, group=group, group_src=rank - step)
            state = torch.addcmul(own, met, fade)
            if rank != ends[1]:
                self.hand_on(state, rank + step, group)
            return met, state

        return wait

    def hand_on(self, state: State, rank: int, group: dist.ProcessGroup) -> None:
        dist.send(state, group=group, group_dst=rank)


def linear_over_ranks(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    log_decay: Float[Tensor, "h"] | None = None, *, group: dist.ProcessGroup, causal: bool = True,
    state: DecayedState | None = None, exchange: Exchange | None = None,
) -> tuple[Float[Tensor, "b h n e"], DecayedState | None]:  # fmt: skip
    """This rank's rows of linear attention over the whole sequence, and the state behind all of it.

    q, k and v are this rank's part of a sequence in which every rank holds n tokens. `log_decay` is log λ,
    fixed. `state` is what an earlier segment left, the same on all ranks; no gradient flows into it or out
    of the state that is returned (None where there is none: without a mask, and behind a `Ring`, whose
    last rank alone knows it).
    """
    carried = None if state is None else state.matrix
    check_operands(q, k, v, log_decay, None)
    (b, h, n, d), e = q.shape, v.shape[3]
    require(
        carried is None or carried.shape == (b, h, d, e),
        f"the state is {carried is not None and list(carried.shape)}, but q and v take {[b, h, d, e]}: "
        "it is of another configuration",
    )
    require(
        log_decay is None or not log_decay.requires_grad,
        "log_decay asks for a gradient, but over ranks the decay is fixed: detach it",
    )
    exchange = exchange or AllGather()
    if causal:
        with torch.autocast(q.device.type, enabled=False):  # which would sum states in half precision
            out, last = _Causal.apply(q, k, v, log_decay, carried, group, exchange)
        seen = n * group.size() + (0 if state is None else state.length)
        return out, None if isinstance(exchange, Ring) else DecayedState(seen, last)
    require(log_decay is None, "log_decay is given, but without a mask nothing has come before anything")
    require(state is None, "state is given, but without a mask there is no earlier segment")
    require(
        isinstance(exchange, AllGather), "exchange is a Ring, but without a mask all ranks want all states"
    )
    with torch.autocast(q.device.type, enabled=False):
        return _Whole.apply(q, k, v, group, exchange), None


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, log_decay, carried, group, exchange):
        since, until, fade = _powers(log_decay, q)
        own = _summed(k, v, until, q.shape[1])
        nothing = torch.zeros_like(own)
        first = nothing if carried is None else carried.to(own.dtype)
        pending = exchange.begin(own, first, fade, group, back=False)
        out, _ = sweep_right(q, k, v, log_decay, nothing, BLOCK)  # while the states travel
        met, last = pending()
        if group.rank() > 0 or carried is not None:
            out += (q * since).to(met.dtype) @ met
        ctx.save_for_backward(q, k, v, log_decay, met, since, fade)
        ctx.group, ctx.exchange = group, exchange
        ctx.mark_non_differentiable(last)
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, _):
        q, k, v, log_decay, met, since, fade = ctx.saved_tensors
        own = _summed(q, grad_out, since, q.shape[1])
        pending = ctx.exchange.begin(own, torch.zeros_like(own), fade, ctx.group, back=True)
        # dq_t = Σ_{s≤t} λ^(t-s) (dO_t·v_s) k_s is the forward equation with its operands renamed.
        grad_q, _ = sweep_right(grad_out, v, k, log_decay, met.mT, BLOCK)  # while the states travel
        behind, _ = pending()
        grad_k, grad_v, _ = sweep_left(q, k, v, grad_out, log_decay, behind, BLOCK)
        return grad_q, grad_k, grad_v, None, None, None, None


class _Whole(torch.autograd.Function):
    """Without a mask: every query meets the sum of all states, one a key head."""

    @staticmethod
    def forward(ctx, q, k, v, group, exchange):
        met = _all(_summed(k, v, None, k.shape[1]), group, exchange)()
        ctx.save_for_backward(q, k, v, met)
        ctx.group, ctx.exchange = group, exchange
        return _by_key_head(q, k, met).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        q, k, v, met = ctx.saved_tensors
        grads = (x.unflatten(1, (k.shape[1], -1)).flatten(2, 3) for x in (q, grad_out))
        pending = _all(_summed(*grads, None, k.shape[1]), ctx.group, ctx.exchange)
        grad_q = _by_key_head(grad_out, k, met.mT)  # while the states travel
        grad_met = pending()
        grad_k, grad_v = v.to(met.dtype) @ grad_met.mT, k.to(met.dtype) @ grad_met
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _all(own: State, group: dist.ProcessGroup, exchange: Exchange) -> Pending:
    pending = exchange.begin(own, torch.zeros_like(own), own.new_ones(own.shape[1], 1, 1), group, back=False)
    return lambda: pending()[1]


def _by_key_head(x: Float[Tensor, "b h n d"], k: Tensor, state: Float[Tensor, "b g d e"]) -> Tensor:
    return (x.to(state.dtype).unflatten(1, (k.shape[1], -1)) @ state[:, :, None]).flatten(1, 2)


def _powers(
    log_decay: Float[Tensor, "h"] | None, q: Float[Tensor, "b h n d"]
) -> tuple[Float[Tensor, "h n 1"], Float[Tensor, "h n 1"], Float[Tensor, "h 1 1"]]:
    """λ^(r+1), λ^(n-1-r) and λ^n."""
    n = q.shape[2]
    logs = q.new_zeros(q.shape[1], dtype=sum_dtype(q.dtype)) if log_decay is None else log_decay
    logs = logs.to(sum_dtype(q.dtype)).clamp(min=SMALLEST_LOG)[:, None, None]
    age = torch.arange(n, device=q.device)[:, None]
    return torch.exp(logs * (age + 1)), torch.exp(logs * (n - 1 - age)), torch.exp(logs * n)


def _summed(
    k: Float[Tensor, "b g n d"],
    v: Float[Tensor, "b g n e"],
    weight: Float[Tensor, "h n 1"] | None,
    heads: int,
) -> State:
    """Σ_r weight_r k_r v_rᵀ, one state a head that has weights of its own; in an accuracy that bears sums."""
    k, v = (x.to(sum_dtype(x.dtype)).unflatten(1, (x.shape[1], 1)) for x in (k, v))
    if weight is not None:
        k = k * weight.unflatten(0, (k.shape[1], -1))
    return (k.mT @ v).flatten(1, 2)
