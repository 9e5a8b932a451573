"""Rules in a layer: projections around a rule, so that the sequence suite can ask it everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from regardant.contract.drawing import Case, Trials
from regardant.contract.equality import off
from regardant.contract.report import Broken, Skip
from regardant.contract.subject import Subject, blame
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Causal
from regardant.core.rule import Rule

WORDS = frozenset(("dim", "heads", "causal", "kv_heads", "context_dim", "pattern"))


def carried(subject: Subject, rule: nn.Module) -> Subject:
    """The subject that makes a rule and carries it in a layer."""
    make = subject.make
    if not isinstance(rule, Rule):

        def wrap(configuration: Mapping[str, Any]) -> nn.Module:
            return Projections(rule=make({}), **configuration)

        return replace(
            subject, kind="rule", make=wrap, takes=frozenset(("dim", "heads")), width=None, heads=None,
            call=lambda module, inputs: module(inputs.x),
        )  # fmt: skip
    declared = type("Carrier", (Carrier,), {"supports": rule.supports})
    takes = WORDS if rule.supports.grouped else WORDS - {"kv_heads"}

    def carry(configuration: Mapping[str, Any]) -> nn.Module:
        return declared(rule=make({}), **configuration)

    return replace(subject, kind="rule", make=carry, takes=takes, width=None, heads=None)


def values(trials: Trials) -> str:
    """Values wider than the keys, and a scale of the caller's, reach the reference's answer, too."""
    subject = trials.subject
    if not subject.ours:
        raise Skip("only rules of this project promise values of any width")
    use = trials.uses(across=False)[0]
    rule = subject.build(Case((17,), heads=2, causal=use.causal)).rule
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 17, width, generator=generator, dtype=subject.dtype) for width in (8, 8, 11))
    pattern = Causal() if use.causal else None
    for scale in (None, 0.3):
        with torch.no_grad(), blame("the rule"):
            out, right = (call(q, k, v, pattern=pattern, scale=scale) for call in (rule, rule.reference))
        if out.shape != v.shape:
            raise Broken(f"values {tuple(v.shape)} gave an output {tuple(out.shape)}")
        if (error := off(out, right)) > subject.tolerance:
            raise Broken(f"with scale={scale} and wide values forward is off its reference by {error:.2g}")
    return "values of width 11 beside keys of width 8, with and without a scale, equal the reference"


class Carrier(MultiHead):
    """Carries a rule; a subclass takes over what the rule declares."""


class Projections(nn.Module):
    """Carries a rule that knows nothing of this project: forward(q, k, v) on [b, h, n, d]."""

    def __init__(self, dim: int, heads: int, *, rule: nn.Module):
        super().__init__()
        self.heads, self.rule = heads, rule
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.rule(q, k, v)
        out = out[0] if isinstance(out, tuple | list) else out
        return self.to_out(out.transpose(1, 2).flatten(2))
