"""Do the costs that `regardant compare` reports agree with an independent stopwatch and with a process's peak
memory to 15 %, and do dense softmax, fused softmax and lightning attention grow as theory says?

    python -m bench.compare_costs [--seconds 35] [--fresh]

The stopwatch is a process of its own that knows nothing of `regardant.compare`: it makes the layer, and takes
the median of calls by `time.perf_counter`; the C library keeps what is freed, as in a process that has run a
while. The peak is the kernel's VmHWM of a process that makes one call, less that of one that makes none. Both
hold a tensor larger than what importing took; the C library returns what is freed. Goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from time import monotonic

from bench.results_file import Results
from regardant.atlas import source
from regardant.compare.costing import CostMeter, Shape
from regardant.compare.findings import System
from regardant.compare.growth import fit
from regardant.sequence.softmax import Softmax

DIM, HEADS = 256, 4
POINTS = [(phase, length) for length in (2048,) for phase in ("forward", "backward")]
LENGTHS = {
    "dense": (512, 1024, 2048, 4096),
    "softmax": (2048, 4096, 8192, 16384),
    "lightning-attention-2": (2048, 4096, 8192, 16384),
}
EXPECTED = {"dense": (2, 2), "softmax": (2, 1), "lightning-attention-2": (1, 1)}
"""Time and memory of a forward pass."""

KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_MAX_": "0"}
RETURN = {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**19)}

STOPWATCH = """
import json, sys, time
import torch
from statistics import median
from bench.compare_costs import make
name, phase, length, seconds, calls = json.loads(sys.argv[1])
torch.manual_seed(0)
layer, x, held = make(name), torch.randn(1, length, 256), torch.ones(150_000_000)
def call(x):
    if phase == "forward":
        with torch.no_grad():
            return layer(x)
    x = x.clone().requires_grad_()
    y = layer(x)
    return torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))
call(x[:, :64])
if calls:
    call(x)
status = open("/proc/self/status").read().split()
peak = int(status[status.index("VmHWM:") + 1]) * 1024
times, until = [], time.perf_counter() + seconds
while calls and seconds and (len(times) < 3 or time.perf_counter() < until):
    start = time.perf_counter()
    call(x)
    times.append(time.perf_counter() - start)
print(json.dumps({"peak": peak, "seconds": median(times) if times else None}))
"""


class Dense(Softmax):
    """Softmax attention with its matrix written out."""

    def forward(self, x, context=None, padding=None, *, record=None):
        return self.reference(x, context, padding)


def make(name: str):
    """The layer of a system here, causal."""
    from regardant import create

    if name == "dense":
        return Dense(DIM, HEADS, causal=True)
    return create(name, dim=DIM, heads=HEADS, causal=True)


def spec(name: str) -> System:
    full = "bench.compare_costs:Dense" if name == "dense" else name
    return System(name, "sequence", (full,), (full,))


def stopwatch(name: str, phase: str, length: int) -> dict[str, float]:
    def run(seconds: float, calls: bool, allocator: dict[str, str]) -> dict[str, float]:
        asked = json.dumps([name, phase, length, seconds, calls])
        command, environment = [sys.executable, "-c", STOPWATCH, asked], os.environ | allocator
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return json.loads(done.stdout)

    seconds = run(0.4, True, KEEP)["seconds"]
    with_call, without = (run(0.0, calls, RETURN)["peak"] for calls in (True, False))
    return {"seconds": seconds, "bytes": with_call - without}


def compared(meter: CostMeter, name: str, phase: str, length: int) -> dict[str, float]:
    shape = Shape(DIM, HEADS, "cpu", "sequence", repeat=0.4, longest=10.0)
    ours, theirs = meter.measure(spec(name), shape, phase, length), stopwatch(name, phase, length)
    return {
        "ms": 1e3 * ours["seconds"], "stopwatch, ms": 1e3 * theirs["seconds"],
        "time": ours["seconds"] / theirs["seconds"],
        "MB": ours["bytes"] / 1e6, "VmHWM, MB": theirs["bytes"] / 1e6,
        "memory": ours["bytes"] / max(theirs["bytes"], 1),
    }  # fmt: skip


def grown(meter: CostMeter, name: str) -> dict[str, float]:
    shape = Shape(DIM, HEADS, "cpu", "sequence", repeat=0.1, longest=10.0)
    found = [meter.measure(spec(name), shape, "forward", length) for length in LENGTHS[name]]
    row = {}
    for quantity, field, expected in zip(("time", "memory"), ("best", "bytes"), EXPECTED[name]):
        growth = fit(LENGTHS[name], [each[field] for each in found])
        row |= {
            quantity: growth.exponent,
            f"{quantity}, error": growth.error,
            f"{quantity}, last": growth.last,
        }
        row |= {f"{quantity}, expected": expected}
    return row


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--seconds", type=float, default=35.0)
    ask.add_argument("--fresh", action="store_true")
    given = ask.parse_args()
    results, until = Results("compare-costs", fresh=given.fresh), monotonic() + given.seconds
    with CostMeter() as meter:
        jobs = {f"{name}, growth": (grown, name) for name in EXPECTED} | {
            f"{name}, {phase}, {length}": (compared, name, phase, length)
            for phase, length in POINTS
            for name in EXPECTED
        }
        for title, (measure, name, *rest) in jobs.items():
            made_of = source.fingerprint("regardant.compare.costing")
            if results.has(title, made_of):
                continue
            if monotonic() > until:
                print("time is up: run again to go on")
                break
            row, quiet = results.quiet.watch(partial(measure, meter, name, *rest))
            results.put(title, row | {"code": made_of, "quiet": round(quiet, 3)})
            print(
                title, {key: round(value, 3) for key, value in row.items()}, f"quiet {quiet:.2f}", flush=True
            )
    results.write_beside(table(results.rows))


def table(rows) -> str:
    points = {title: row for title, row in rows.items() if "stopwatch, ms" in row}
    grown = {title: row for title, row in rows.items() if "time, expected" in row}
    text = "# The costs of `regardant compare` against an independent stopwatch and the kernel's VmHWM\n\n"
    text += "| point | ms | stopwatch, ms | ratio | MB | VmHWM, MB | ratio |\n"
    text += "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    for title, row in points.items():
        figures = (row[key] for key in ("ms", "stopwatch, ms", "time", "MB", "VmHWM, MB", "memory"))
        text += f"| {title} | {' | '.join(f'{figure:.3g}' for figure in figures)} |\n"
    text += "\nExponents of a forward pass, dense up to 4,096 tokens, the others from 2,048 to 16,384:\n\n"
    text += "| system | time | expected | memory | expected |\n| --- | ---: | ---: | ---: | ---: |\n"
    for title, row in grown.items():
        cells = (
            "{:.2f} ± {:.2f} (last two {:.2f}) | {}".format(
                row[key], *(row[f"{key}, {rest}"] for rest in ("error", "last", "expected"))
            )
            for key in ("time", "memory")
        )
        text += f"| {title.partition(',')[0]} | {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    main()
