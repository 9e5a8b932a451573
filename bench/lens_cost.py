"""What reading and editing a pretrained model costs, on SmolLM2-135M-Instruct.

    python -m bench.lens_cost          # measures and writes results/lens-cost-….json

Three questions, each a ratio of runs that take turns: reading the maps of 2 layers, 3 heads and the last 16
rows at 4,096 tokens (time, and peak memory in processes of their own); an edit on the heads of 4 of 30 layers
while text is generated; an edit on the weights of one layer, of which a counter shows that the others stay
fused. Time is the process's own on one thread, so that other work on the machine counts less.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

import regardant
from bench.results_file import Results
from regardant.edit.edit import Edit
from regardant.edit.mask_heads import MaskHeads
from regardant.lens.tape import Reading, Tape
from regardant.world.pretrained import smollm2

LENGTH, PROMPT, GENERATED = 4096, 64, 48
ROUNDS, READINGS = 5, 1
READ = Reading(layers=[9, 20], heads=[0, 4, 8], rows=slice(-16, None))
SILENT = [(layer, 0) for layer in (5, 12, 19, 26)]


class Unchanged(Edit):
    """Asks for the weights of its layers, and leaves them."""

    def weights(self, weights, site, run):
        return weights


def taking_turns(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The median of each run's own processor time."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            found[name].append(time.process_time() - begin)
    return {name: statistics.median(each) for name, each in found.items()}


def tokens(length: int) -> torch.Tensor:
    return torch.randint(1000, 40_000, (1, length), generator=torch.Generator().manual_seed(0))


def forward(model, ids, reading: bool) -> None:
    """One pass; the last row's logits alone, as 4,096 rows of them would hide the rest."""
    with torch.no_grad(), Tape(model, maps=READ) if reading else nullcontext():
        model(ids, logits_to_keep=1)


def alone(mode: str) -> tuple[float, float]:
    """Processor seconds of a pass, and the MiB that it adds to the most that its process ever held."""
    # A process of its own: the peak of a process never falls.
    out = subprocess.run(
        [sys.executable, "-m", "bench.lens_cost", mode], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "524288"},
    )  # fmt: skip
    seconds, more = map(float, out.stdout.split()[-2:])
    return seconds, more


def resident_peak() -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")) / 1024


def one_pass(mode: str) -> None:
    torch.set_num_threads(1)
    model, _ = smollm2()
    # All weights read from disk once, in either mode.
    forward(model, tokens(PROMPT), reading=True)
    before, begin = resident_peak(), time.process_time()
    forward(model, tokens(LENGTH), reading=mode == "reading")
    print(time.process_time() - begin, resident_peak() - before)


def main() -> None:
    torch.set_num_threads(1)
    results = Results("lens-cost", "torch", "transformers")
    model, _ = smollm2()
    prompt = tokens(PROMPT)
    settings = dict(do_sample=False, max_new_tokens=GENERATED, min_new_tokens=GENERATED, pad_token_id=0)

    def generate() -> None:
        model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)

    def edited() -> None:
        with regardant.apply(model, MaskHeads(chosen=SILENT, strength=0.5)):
            generate()

    took = taking_turns({"unedited": generate, "edited": edited}, ROUNDS)
    ratio = took["edited"] / took["unedited"]
    results.put(
        f"heads edited in 4 of 30 layers, {GENERATED} tokens generated",
        {"seconds": took, "ratio": ratio, "allowed": 1.15},
    )

    with torch.no_grad(), regardant.apply(model, Unchanged(layers=[9])) as applied:
        model(prompt)
    ways = {
        how: sum(n for (_, each), n in applied.calls.items() if each == how) for how in ("fused", "written")
    }
    results.put("weights edited in 1 of 30 layers", {"calls": ways, "allowed": {"fused": 29, "written": 1}})
    rounds = [{mode: alone(mode) for mode in ("plain", "reading")} for _ in range(READINGS)]
    seconds, more = (
        {mode: statistics.median(each[mode][which] for each in rounds) for mode in ("plain", "reading")}
        for which in (0, 1)
    )
    results.put(
        "maps of 2 layers, 3 heads, the last 16 rows at 4,096 tokens",
        {
            "seconds": seconds, "ratio": seconds["reading"] / seconds["plain"], "allowed": 1.2,
            "peak MiB": more, "more MiB": more["reading"] - more["plain"], "allowed MiB": 100,
        },
    )  # fmt: skip
    print(results.path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    one_pass(sys.argv[1]) if len(sys.argv) > 1 else main()
