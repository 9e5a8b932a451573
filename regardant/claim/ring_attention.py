"""Is ring attention exact, and what does it send? The baseline that sequence parallelism is compared with.

Its memory is what a rank holds of the sequence; its price is that all keys and values go all the way round.
"""

from functools import partial

import torch

from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, exact
from regardant.compare import over_ranks
from regardant.compare.growth import fit as fit_growth
from regardant.parallel.processes import on_ranks
from regardant.parallel.ring_attention import RingAttention

LENGTHS = (1024, 4096, 16384)


def equality() -> dict[str, float]:
    """The largest difference of an output or a gradient of two ranks from one process's."""
    answers = RingAttention.known_answers(torch.Generator().manual_seed(0))
    return {"difference": max(answer.error() for answer in answers)}


def traffic() -> dict[str, float]:
    """Bytes that a rank of two sends, forward and backward."""
    sent = partial(over_ranks.sent, dim=32, heads=2)
    seen = on_ranks(2, sent, "ring-attention", "softmax", LENGTHS)[0]
    return {str(length): each.sent for length, each in zip(LENGTHS, seen)}


def claim(context: Context) -> Outcome:
    same, sent = context.check("equality", equality), context.check("traffic", traffic)
    grows = fit_growth(LENGTHS, list(sent.values())).exponent
    return Outcome(
        setting="two gloo processes on one CPU, a layer of width 32; the paper hides what travels behind the "
        "blocks' computation on TPUs, which one machine cannot show",
        figures=[
            Figure.once(f"KB sent by a rank at {n} tokens", {"ring attention": sent[str(n)] / 1e3})
            for n in LENGTHS
        ],
        criteria=[
            exact("outputs and gradients equal one process's", same["difference"], at_most=1e-9),
            cost("what a rank sends grows in proportion to the length", abs(grows - 1), at_most=0.01),
        ],
    )
