"""Ring attention (Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023,
arXiv:2310.01889): the baseline of LASP-2.

Every rank keeps its queries and sends its keys and values round a ring, one rank at a step, merging what
each step adds under one softmax; see `regardant.parallel.ring`. It holds the keys of two ranks at most,
and sends b·g·n·2d numbers at each of its steps, where n is a rank's share of the length. What differs from
the authors' code: causal ranks do not work on keys that they do not see, but wait for the ring all the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.core.pattern import Causal
from regardant.core.plan import attend_dense
from regardant.core.rule import SoftmaxRule
from regardant.parallel.processes import on_ranks
from regardant.parallel.ring import ring_attention
from regardant.parallel.sequence_parallel import SequenceParallel, softmax_of, unsplit


class RingAttention(SequenceParallel):
    """Softmax attention, causal or not, with keys and values going round."""

    def attend(self, rule, q, k, v, *, pattern, scale):
        softmax = softmax_of(rule)
        if softmax is None or softmax.bias is not None or softmax.normaliser is not None:
            raise unsplit(self, rule, "plain softmax")
        require(
            pattern is None or type(pattern) is Causal,
            f"pattern is {pattern}, but keys that go round are seen by all, or by those behind them",
        )
        return ring_attention(q, k, v, group=self.group, causal=pattern is not None, scale=scale)

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """Three ranks against one process: outputs and gradients."""
        q, grad = (torch.randn(1, 4, 12, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        k, v = (torch.randn(1, 2, 12, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        parts = on_ranks(3, _parts, q, k, v, grad)
        for name, pattern in CASES.items():
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            out = attend_dense(*inputs, pattern)
            right = [out, *torch.autograd.grad((out * grad).sum(), inputs)]
            for what, expected, *its in zip(("output", "dq", "dk", "dv"), right, *(x[name] for x in parts)):
                yield KnownAnswer(f"{name}: {what} of three ranks", torch.cat(its, dim=2), expected)


CASES = {"everything": None, "causal": Causal()}


def _parts(mesh: DeviceMesh, *whole: Tensor) -> dict[str, list[Tensor]]:
    """This rank's outputs and gradients, case by case."""
    ring, found = RingAttention(mesh), {}
    for name, pattern in CASES.items():
        *inputs, grad = (ring.cut(x, axis=2) for x in whole)
        inputs = [x.clone().requires_grad_() for x in inputs]
        out = ring.attend(SoftmaxRule(), *inputs, pattern=pattern, scale=None)
        found[name] = [out.detach(), *torch.autograd.grad((out * grad).sum(), inputs)]
    return found
