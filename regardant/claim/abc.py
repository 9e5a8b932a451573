"""Does attention to a memory of slots cost as little as it says, causal or not?"""

from regardant.claim.context import Context
from regardant.claim.efficient_baseline import efficient
from regardant.claim.outcome import Outcome


def claim(context: Context) -> Outcome:
    return efficient(context, "abc", causal=(False, True))
