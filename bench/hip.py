"""HiP's attention by itself: how its time grows from 2k to 16k tokens, and dense attention beside it.

    python -m bench.hip [--threads 1]

One layer of 3 query heads and 1 key head of 64 channels, 128 keys a query as in the claim. The exponent is
that of the line through the logarithms of the best times.
"""

from __future__ import annotations

import argparse
from math import log

import torch
from torch.nn.functional import scaled_dot_product_attention

from bench.results_file import Results
from regardant.compare.clock import clock, keep_freed_memory
from regardant.edit.language.causal_text import CausalText
from regardant.edit.language.hip_attention import HiPAttention
from regardant.host.run import Run
from regardant.host.site import Site

LENGTHS = (2048, 4096, 8192, 16384)
DENSE = (2048, 4096, 8192)
"""As far as dense attention goes in a second or two."""
HEADS, WIDTH, BUDGET = 3, 64, 128


def text(length: int) -> CausalText:
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(1, HEADS, length, WIDTH, generator=generator)
    k, v = (torch.randn(1, 1, length, WIDTH, generator=generator) for _ in range(2))
    return CausalText(q, k, v, 0, WIDTH**-0.5, slice(0, 1), slice(0, length))


def exponent(seconds: dict[int, float]) -> float:
    """The slope of the line through the logarithms."""
    x, y = ([log(value) for value in values] for values in (seconds, seconds.values()))
    middle, level = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - level) for a, b in zip(x, y)) / sum((a - middle) ** 2 for a in x)


@torch.no_grad()
def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(asked.parse_args().threads)
    keep_freed_memory()
    edit, run = HiPAttention(budget=BUDGET), Run()
    here = Site("here", "main", 9, False, HEADS, 1, WIDTH, True, torch.nn.Identity())
    texts = {length: text(length) for length in LENGTHS}
    calls = {("hip", n): lambda n=n: edit.mix(texts[n], here, run) for n in LENGTHS}
    calls |= {
        ("dense", n): lambda n=n: scaled_dot_product_attention(
            texts[n].q, texts[n].k, texts[n].v, is_causal=True, enable_gqa=True
        )
        for n in DENSE
    }
    results = Results("hip")
    found, share = results.quiet.watch(lambda: dict(clock(calls, budget=0, least=3)))
    for name in ("hip", "dense"):
        seconds = {n: found[name, n].best for which, n in found if which == name}
        results.put(
            name,
            {
                "seconds": {str(n): round(value, 5) for n, value in seconds.items()},
                "exponent": round(exponent(seconds), 3),
                "quiet": round(share, 3),
            },
        )
        print(
            f"{name}: exponent {exponent(seconds):.2f}, "
            + ", ".join(f"{n} {s:.3f} s" for n, s in seconds.items())
        )


if __name__ == "__main__":
    main()
