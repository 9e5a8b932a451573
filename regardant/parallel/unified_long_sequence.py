"""Distributed attention (He & Kabic, "A Unified View of Long-Sequence Models towards Modeling
Million-Scale Dependencies", 2023, arXiv:2302.06218).

Exact softmax attention over a sequence whose rows lie on W workers, in two ways:

rows   every worker keeps its queries; keys and values circulate, and what each block adds is merged under
       one softmax by its maximum and sum (`regardant.parallel.ring`); no L × L matrix exists anywhere
heads  an all-to-all hands every worker all rows of h/W of the heads, and another one brings the rows back;
       any pattern, W a divisor of the heads

The other half of the paper writes every token mixer that is linear in its values as one matrix,
Y = M(X) V(X). Here that is `mixing_matrix` of any such layer (`regardant.core.mixer`).

How the paper lays its matrices out over devices is not told in what could be read: this is the standard
exact scheme, our reading. Its speed-up of 40 on four GPUs mixes parallel work with another algorithm;
work here is divided by the number of workers and no more. Rows lie in order, so when causal the last
worker has the most to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from regardant.core import plan
from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.core.pattern import Causal, Window
from regardant.core.rule import SoftmaxRule
from regardant.parallel.exchange import HeadsForRows
from regardant.parallel.processes import on_ranks
from regardant.parallel.ring import ring_attention
from regardant.parallel.sequence_parallel import SequenceParallel, softmax_of, unsplit

Way = Literal["rows", "heads"]


class DistributedAttention(SequenceParallel):
    """Softmax attention split over the workers of a mesh: by `rows`, or by `heads`."""

    def __init__(self, mesh: DeviceMesh, *, way: Way = "rows"):
        super().__init__(mesh)
        require(way in get_args(Way), f"way is {way!r}, but attention is split by rows or by heads")
        self.way = way

    def attend(self, rule, q, k, v, *, pattern, scale):
        softmax = softmax_of(rule)
        if softmax is None or softmax.bias is not None or (softmax.normaliser and self.way == "rows"):
            raise unsplit(self, rule, "softmax without a bias")
        if self.way == "rows":
            require(
                pattern is None or type(pattern) is Causal,
                f"pattern is {pattern}, but keys that circulate are seen by all, or by those behind them: "
                "split by heads",
            )
            return ring_attention(q, k, v, group=self.group, causal=pattern is not None, scale=scale)
        for name, heads in (("heads", q.shape[1]), ("kv_heads", k.shape[1])):
            require(
                heads % self.ranks == 0,
                f"{name} is {heads}, which {self.ranks} workers cannot share evenly: split by rows",
            )
        require(
            pattern is None or not pattern.by_head,
            f"pattern is {pattern}, one a head, but every worker has other heads: split by rows",
        )
        q, k, v = (HeadsForRows.apply(x, self.group, False) for x in (q, k, v))
        out = plan.attend(q, k, v, pattern, scale=scale, normaliser=softmax.normaliser)
        return HeadsForRows.apply(out, self.group, True)

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """Two workers against one process: outputs and gradients, both ways."""
        q, grad = (torch.randn(1, 4, 12, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        k, v = (torch.randn(1, 2, 12, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        both = on_ranks(2, _parts, q, k, v, grad)
        for name, (_, pattern) in CASES.items():
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            out = plan.attend_dense(*inputs, pattern)
            right = [out, *torch.autograd.grad((out * grad).sum(), inputs)]
            for what, expected, *parts in zip(("output", "dq", "dk", "dv"), right, *(x[name] for x in both)):
                yield KnownAnswer(f"{name}: {what} of two workers", torch.cat(parts, dim=2), expected)


CASES = {
    "rows": ("rows", None),
    "rows, causal": ("rows", Causal()),
    "heads": ("heads", None),
    "heads, a causal window": ("heads", Causal() & Window(5)),
}


def _parts(mesh: DeviceMesh, *whole: Tensor) -> dict[str, list[Tensor]]:
    """This worker's outputs and gradients, case by case."""
    found = {}
    for name, (way, pattern) in CASES.items():
        workers = DistributedAttention(mesh, way=way)
        *inputs, grad = (workers.cut(x, axis=2) for x in whole)
        inputs = [x.clone().requires_grad_() for x in inputs]
        out = workers.attend(SoftmaxRule(), *inputs, pattern=pattern, scale=None)
        found[name] = [out.detach(), *torch.autograd.grad((out * grad).sum(), inputs)]
    return found
