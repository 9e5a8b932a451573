"""C8: what LASP-2 sends and waits for when a sequence is split over processes, and ring attention beside it.

    python -m bench.parallel [--only share] [--seconds 60] [--fresh]

Two gloo processes with a thread each. Bytes are those that leave a rank in one pass forward and backward.
"""

from __future__ import annotations

from functools import partial

from bench.limits import Limits
from bench.results_file import Results
from bench.target import Found, Target, arguments, run
from regardant.compare import over_ranks
from regardant.compare.clock import Timing
from regardant.parallel.processes import on_ranks

HEADS, WIDTH = 8, 64
SHORT, LONG = 1024, 65536
MIDDLE = 8192
"""As far as softmax goes in a few seconds."""
LINEAR, SOFTMAX = ("lasp-2", "lightning-attention-2"), ("ring-attention", "softmax")


def targets() -> list[Target]:
    """How many collectives, how large, and how long they are waited for."""
    found = [
        Target(
            f"C8 LASP-2, {ranks} processes: collectives, forward and backward", 2, 2, partial(steps, ranks)
        )
        for ranks in (2, 4)
    ]
    found += [
        Target(f"C8 LASP-2, bytes sent at {LONG} over at {SHORT}", 1.0, 1.0, partial(grown, LINEAR, LONG)),
        # No target but a measure: the length grows so many times.
        Target(
            f"C8 ring attention, bytes sent at {MIDDLE} over at {SHORT}",
            MIDDLE / SHORT,
            MIDDLE / SHORT,
            partial(grown, SOFTMAX, MIDDLE),
        ),
        Target("C8 LASP-2 at 16384, share of the exchange hidden behind work", 0.5, 0.8, hidden),
        Target(
            "C8 LASP-2 against ring attention at 4096, forward and backward", 1.366, 2.0, against_the_ring
        ),
    ]
    return found


def sent(ranks: int, contestant: tuple[str, str], *lengths: int) -> list[over_ranks.Sent]:
    """By rank 0; counted, so narrow heads will do."""
    return on_ranks(ranks, partial(over_ranks.sent, dim=32, heads=2), *contestant, lengths)[0]


def steps(ranks: int, _: Limits) -> Found:
    return sent(ranks, LINEAR, SHORT)[0].steps, {}


def grown(contestant: tuple[str, str], length: int, _: Limits) -> Found:
    short, long = sent(2, contestant, SHORT, length)
    return long.sent / short.sent, {}


def hidden(_: Limits) -> Found:
    beside_work, alone = on_ranks(2, partial(over_ranks.waiting, heads=HEADS, width=WIDTH), 16384)[0]
    return 1 - beside_work / alone, {"beside work": timing(beside_work), "alone": timing(alone)}


def against_the_ring(_: Limits) -> Found:
    measure = partial(over_ranks.seconds, dim=HEADS * WIDTH, heads=HEADS)
    ours, ring = on_ranks(2, measure, [LINEAR, SOFTMAX], 4096)[0]
    return ring / ours, {"ours": timing(ours), "ring": timing(ring)}


def timing(median: float) -> Timing:
    return Timing(median, median, 1, (median, median))


def main() -> None:
    asked = arguments(__doc__).parse_args()
    run("Sequences split over processes", targets(), Results("parallel"), asked)


if __name__ == "__main__":
    main()
