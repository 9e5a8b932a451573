"""Is attention inside chunks linear, and nearer to softmax with wider ones?"""

from regardant.claim.context import Context
from regardant.claim.efficient_baseline import efficient
from regardant.claim.outcome import Outcome


def claim(context: Context) -> Outcome:
    return efficient(context, "local-attention", more=({"window": 8}, {"window": 32}), causal=(False, True))
