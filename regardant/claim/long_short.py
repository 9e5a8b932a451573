"""Do the window and the compressed rest cost as little as they say, causal or not?"""

from regardant.claim.context import Context
from regardant.claim.efficient_baseline import efficient
from regardant.claim.outcome import Outcome


def claim(context: Context) -> Outcome:
    return efficient(context, "long-short", causal=(False, True))
