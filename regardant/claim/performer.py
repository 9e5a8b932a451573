"""Are random features linear, and nearer to softmax with more of them?"""

from regardant.claim.context import Context
from regardant.claim.efficient_baseline import efficient
from regardant.claim.outcome import Outcome


def claim(context: Context) -> Outcome:
    return efficient(context, "performer", more=({"features": 16}, {"features": 512}), causal=(False, True))
