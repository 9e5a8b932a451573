"""Does attention with ReLU and cosines cost as little as it says, causal or not?"""

from regardant.claim.context import Context
from regardant.claim.efficient_baseline import efficient
from regardant.claim.outcome import Outcome


def claim(context: Context) -> Outcome:
    return efficient(context, "cosformer", causal=(False, True))
