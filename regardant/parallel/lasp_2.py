"""LASP-2 (Sun et al., "LASP-2: Rethinking Sequence Parallelism for Linear Attention and Its Hybrid", 2025,
arXiv:2502.07563).

A sequence is split over ranks. A linear attention layer needs of the ranks before it nothing but the sum
of their states, so each gathers everybody's states M_t = K_tᵀ V_t once forward, and their gradients once
backward: two collectives of b·h·d² numbers a layer, whatever the length, and what a rank can do within its
own part is done while they travel. A softmax layer of a hybrid model (LASP-2H) gathers keys and values
forward and scatters the sums of their gradients backward.

The equations, with decay and without a mask, are in `regardant.parallel.linear`. What differs from the
paper: a decay a head, an earlier segment's state, softmax layers under any pattern. What differs from the
official code as released: its masked kernel masks between chunks of 64 tokens but not inside one, and its
unmasked one leaves a token's own block and all later ones out; both are as in the paper here. A part may
have any length, where those kernels want blocks that come out even.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from regardant.core import plan
from regardant.core.decayed_linear import decayed_linear
from regardant.core.decayed_rule import DecayedLinearRule
from regardant.core.known_answer import KnownAnswer
from regardant.core.pattern import Causal
from regardant.core.rule import SoftmaxRule
from regardant.parallel.exchange import Gathered
from regardant.parallel.linear import linear_over_ranks
from regardant.parallel.processes import on_ranks
from regardant.parallel.sequence_parallel import SequenceParallel, runs_softmax, unsplit


class Lasp2(SequenceParallel):
    """Linear attention by gathered states, softmax attention by gathered keys and values."""

    def attend(self, rule, q, k, v, *, pattern, scale):
        if type(rule) is DecayedLinearRule:
            q = q if scale is None else q * scale
            return linear_over_ranks(q, k, v, rule.log_decay, group=self.group)[0]
        if not runs_softmax(rule):
            raise unsplit(self, rule, "softmax and linear attention with a fixed decay")
        k, v = Gathered.apply(torch.cat([k, v], dim=-1), self.group).split([k.shape[-1], v.shape[-1]], dim=-1)
        offset = self.offset(q.shape[2])
        if type(pattern) is Causal:
            k, v = (x[:, :, : offset + q.shape[2]] for x in (k, v))
        added = rule.added(q, scale=scale, offset=offset)
        return plan.attend(
            q, k, v, pattern, scale=scale, bias=added, normaliser=rule.normaliser, offset=offset
        )  # fmt: skip

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """Two ranks against one process: outputs and gradients."""
        shapes = ((1, 4, 10, 3), (1, 2, 10, 3), (1, 2, 10, 5), (1, 4, 10, 5))
        q, k, v, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        decay = -torch.rand(4, generator=generator, dtype=torch.float64)
        both = on_ranks(2, _parts, q, k, v, grad, decay)
        whole = {
            "with a decay": partial(decayed_linear, log_decay=decay),
            "without a mask": lambda q, k, v: q @ (k.mT @ v).repeat_interleave(2, dim=1),
            "softmax": lambda q, k, v: plan.attend_dense(q, k, v, Causal()),
        }
        for name, run in whole.items():
            inputs = [x.requires_grad_() for x in (q.clone(), k.clone(), v.clone())]
            out = run(*inputs)
            right = [out, *torch.autograd.grad((out * grad).sum(), inputs)]
            for what, expected, *parts in zip(("output", "dq", "dk", "dv"), right, *(x[name] for x in both)):
                yield KnownAnswer(f"{name}: {what} of two ranks", torch.cat(parts, dim=2), expected)


def _parts(mesh: DeviceMesh, *whole: Tensor) -> dict[str, list[Tensor]]:
    """This rank's outputs and gradients, by the kind of attention."""
    lasp, decay = Lasp2(mesh), whole[-1]
    q, k, v, grad = (lasp.cut(x, axis=2) for x in whole[:-1])
    runs = {
        "with a decay": lambda q, k, v: linear_over_ranks(q, k, v, decay, group=lasp.group)[0],
        "without a mask": lambda q, k, v: linear_over_ranks(q, k, v, group=lasp.group, causal=False)[0],
        "softmax": lambda q, k, v: lasp.attend(SoftmaxRule(), q, k, v, pattern=Causal(), scale=None),
    }
    found = {}
    for name, run in runs.items():
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = run(*inputs)
        found[name] = [out.detach(), *torch.autograd.grad((out * grad).sum(), inputs)]
    return found
