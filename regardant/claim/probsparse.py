"""Does ProbSparse cost n log n, and come nearer to softmax with more queries?"""

from regardant.claim.context import Context
from regardant.claim.efficient_baseline import efficient
from regardant.claim.outcome import Outcome


def claim(context: Context) -> Outcome:
    return efficient(context, "probsparse", more=({"factor": 1}, {"factor": 40}), time=1.15)
