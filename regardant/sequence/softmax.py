"""Softmax attention (Vaswani et al., 2017): the baseline that everything else is measured against.

    y_i = Σ_j softmax_j(q_i·k_j / √d) v_j

under any pattern; `regardant.core.plan` finds the fast way for the pattern at hand.
"""

from regardant.core.mixer import MultiHead
from regardant.core.supports import Supports


class Softmax(MultiHead):
    """Multi-head softmax attention."""

    supports = Supports(time=2.0, memory=1.0, state=1.0)
