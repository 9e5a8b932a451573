"""A sequence split over ranks: every rank holds as many tokens as any other, in the order of the ranks.

    torchrun --nproc-per-node 4 train.py

    mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("sequence",))
    fit(model, task, …, parallel=Lasp2(mesh))

Whatever works token by token needs no other rank; only where tokens meet, in a layer's rule, is there
something to exchange, and how that is done is what the systems of this folder differ in. Weights are
whole on every rank, and their gradients are summed once a step. The collectives are those of
torch.distributed: gloo on a CPU, NCCL on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Pattern
from regardant.core.record import Record
from regardant.core.rule import Rule, SoftmaxRule


class SequenceParallel:
    """The ranks of a mesh with one axis, and how a layer works over them. A system defines `attend`."""

    def __init__(self, mesh: DeviceMesh):
        require(
            mesh.ndim == 1,
            f"mesh has the axes {mesh.mesh_dim_names or mesh.ndim}, but a sequence is split along one: "
            "give the submesh of that axis, mesh[name]",
        )
        self.mesh, self.group = mesh, mesh.get_group()
        self.rank, self.ranks = mesh.get_local_rank(), mesh.size()

    def attend(
        self, rule: Rule, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"],
        v: Float[Tensor, "b g n e"], *, pattern: Pattern | None, scale: float | None,
    ) -> Float[Tensor, "b h n e"]:  # fmt: skip
        """What the rule makes of the whole sequence, for the queries of this rank. `pattern` is in the
        positions of the whole sequence."""
        raise TypeError(f"{type(self).__name__} must define attend")

    def mix(
        self, layer: nn.Module, x: Float[Tensor, "b n c"], *, record: Record | None = None
    ) -> Float[Tensor, "b n c"]:
        """This rank's part of what `layer` makes of the whole sequence; x is this rank's part."""
        self._check(layer)
        layer.check_inputs(x, None, None)
        require(
            x.device.type == self.mesh.device_type,
            f"x is on {x.device.type}, but the mesh is of {self.mesh.device_type} devices",
        )
        n = x.shape[1]
        q, k, v = layer.project(x, offset=self.offset(n))
        pattern = layer.visible(self.ranks * n, across=False, padding=None)
        heads = self.attend(layer.rule, q, k, v, pattern=pattern, scale=layer.scale)
        return layer.merge(heads, x=x, record=record)

    def _check(self, layer: nn.Module) -> None:
        name = type(layer).__name__
        require(isinstance(layer, MultiHead), f"{name} is no projections around a rule: it cannot be split")
        own = [each for each in ("forward", "attend", "step") if _differs(layer, MultiHead, each)]
        require(
            not own and layer.supports.step,
            f"{name} has its own {own[0] if own else 'way to a whole sequence'}: only layers whose tokens "
            "meet in their rule alone are split",
        )
        require(
            layer.context_dim is None,
            f"context_dim={layer.context_dim} makes {name} a layer across two sequences, but one is split",
        )

    def offset(self, length: int) -> int:
        """The position of this rank's first token, where every rank holds `length`."""
        return self.rank * length

    def cut(self, x: Tensor, *, axis: int = 1) -> Tensor:
        """This rank's part of what every rank holds whole."""
        n = x.shape[axis]
        require(
            n % self.ranks == 0,
            f"the sequence has {n} tokens, which {self.ranks} ranks cannot share evenly: pad it to "
            f"{-(-n // self.ranks) * self.ranks}, or take a number of ranks that divides it",
        )
        return x.narrow(axis, self.rank * (n // self.ranks), n // self.ranks)

    def join(self, part: Tensor, *, axis: int = 1) -> Tensor:
        """The whole of what `cut` has cut, on every rank; without gradients."""
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.ranks)]
        dist.all_gather(parts, part.detach().contiguous(), group=self.group)
        return torch.cat(parts, dim=axis)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks; without gradients."""
        value = value.detach().clone()
        dist.all_reduce(value, group=self.group)
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every rank's gradients become those of the whole sequence: one collective a type of number."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for dtype in sorted({each.dtype for each in trained}, key=str):
            some = [each for each in trained if each.dtype == dtype]
            # A parameter may have met no token here and some elsewhere; of all ranks the sizes must agree.
            grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in some]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat, group=self.group)
            for each, summed in zip(some, flat.split([grad.numel() for grad in grads])):
                each.grad = summed.view_as(each)


def runs_softmax(rule: Rule) -> bool:
    """Whether what the rule does is `plan.attend`, with what it adds to the logits and its normaliser."""
    return isinstance(rule, SoftmaxRule) and not _differs(rule, SoftmaxRule, "forward")


def softmax_of(rule: Rule) -> SoftmaxRule | None:
    """The rule, if it runs softmax and adds nothing to the logits but its bias; else None."""
    return rule if runs_softmax(rule) and not _differs(rule, SoftmaxRule, "added") else None


def unsplit(system: SequenceParallel, rule: Rule, splits: str) -> ValueError:
    """What a system says to a rule that it cannot split."""
    return ValueError(
        f"{type(rule).__name__} cannot be split: {type(system).__name__} knows how to split {splits}"
    )


def _differs(module: nn.Module, base: type, method: str) -> bool:
    return getattr(type(module), method) is not getattr(base, method)
