"""Is linear randomised attention linear, and nearer to softmax with more landmarks?"""

from regardant.claim.context import Context
from regardant.claim.efficient_baseline import efficient
from regardant.claim.outcome import Outcome


def claim(context: Context) -> Outcome:
    return efficient(context, "lara", more=({"landmarks": 4}, {"landmarks": 64}))
