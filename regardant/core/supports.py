"""What a system says it can do. The contract suites hold it to every word.

This module does not import torch: `regardant show` reads these declarations from the source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Supports:
    """The uses, inputs and growth that a rule or a mixer declares.

    The four uses are those of Zhang et al. (CAB): self-attention or cross-attention, and in each the
    output of a query may or may not depend on later queries (in cross-attention the context is
    visible as a whole either way).

    `time`, `memory` and `state` are exponents of the length n: of `forward` (time and memory) and of
    the decoding state (0 is a state of constant size, 1 one that grows with every token).

    `linear_in_values` says that the output is a matrix times the values, the matrix made of the rest: then
    that matrix can be asked for (`mixing_matrix`).
    """

    noncausal: bool = True
    causal: bool = True
    cross: bool = True
    causal_cross: bool = True
    step: bool = True
    pattern: bool = True
    padding: bool = True
    grouped: bool = True
    gradients: bool = True
    linear_in_values: bool = True
    time: float = 2.0
    memory: float = 1.0
    state: float = 1.0
    exempt: Mapping[str, str] = field(default_factory=dict)
    """Contract property → why this system cannot have it. Shown on the card."""
