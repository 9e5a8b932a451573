"""A comparison's folder as a finished run leaves it, with invented figures: to try readers of it on."""

from __future__ import annotations

import json
import random
from math import exp
from pathlib import Path

LENGTHS, POSITIONS, SEEDS = (512, 1024, 2048, 4096), (100, 1000), (0, 1)
# name → kind, parts, milliseconds a thousand tokens forward, exponent, recall, loss in nats a byte
SYSTEMS = {
    "softmax": ("sequence", ("softmax",), 2.0, 1.9, 0.97, 1.92),
    "moh": ("sequence", ("moh",), 2.9, 1.9, 0.95, 1.93),
    "sliding-window": ("sequence", ("sliding-window",), 2.2, 1.0, 0.35, 1.97),
    "linear-attention+sliding-window": (
        "sequence", ("linear-attention", "sliding-window"), 3.1, 1.0, 0.81, 1.94,
    ),
    "lightning-attention-2": ("sequence", ("lightning-attention-2",), 4.5, 1.0, 0.52, 1.98),
    "linear-attention": ("sequence", ("linear-attention",), 3.8, 1.0, 0.44, 2.05),
    "base-conv": ("sequence", ("base-conv",), 0.9, 1.0, 0.12, 2.11),
    "flowformer": ("sequence", ("flowformer",), 6.5, 1.0, 0.41, 2.03),
    "aaren": ("sequence", ("aaren",), 1.7, 1.0, 0.09, 2.2),
}  # fmt: skip
ORIGIN = {
    "machine": "Some Processor, 2 threads, AVX2", "device": "cpu",
    "versions": {"python": "3.12.3", "torch": "2.13.0", "regardant": "0.0.1"}, "commit": "0123456789ab",
    "date": "2026-01-01T12:00:00+00:00",
}  # fmt: skip
TASKS = [
    {
        "name": "recall", "title": "multi-query associative recall", "measure": "accuracy",
        "higher_is_better": True, "steps": 600, "batch": 32, "length": 64, "parameters": 120_000,
        "chance": 1 / 32, "about": "4 pairs in 64 tokens over 64 symbols", "kind": "sequence",
    },
    {
        "name": "bytes", "title": "bytes of the standard library", "measure": "nats a byte",
        "higher_is_better": False, "steps": 400, "batch": 16, "length": 128, "parameters": 140_000,
        "chance": 5.545, "about": "windows of 128 bytes of Python's standard library", "kind": "sequence",
    },
    {
        "name": "extrapolation", "title": "length extrapolation", "measure": "nats a byte at 8 times",
        "higher_is_better": False, "steps": 400, "batch": 16, "length": 64, "parameters": 140_000,
        "chance": 5.545, "about": "trained on windows of 64 bytes, read up to 512", "kind": "sequence",
    },
]  # fmt: skip
MAP_TOKENS = 16


def write_sample(folder: Path) -> Path:
    """`plan.json` and `results.jsonl` of nine systems, three tasks, two seeds, with what can go wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "asked": {"names": [], "budget": 240.0},
        "systems": [{"name": name, "kind": s[0], "parts": list(s[1])} for name, s in SYSTEMS.items()],
        "tasks": TASKS, "lengths": LENGTHS, "positions": POSITIONS, "dim": 64, "heads": 2, "layers": 2,
        "seeds": SEEDS, "device": "cpu", "budget": 240.0,
        "left_out": [
            "copying, needle, regression and pixels: two tasks fit into 4 minutes",
            "8,192 tokens and more: four lengths fit into 4 minutes",
        ],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan, indent=2), encoding="utf-8")
    with (folder / "results.jsonl").open("w", encoding="utf-8") as file:
        for line in [*_costs(), *_qualities()]:
            file.write(json.dumps(line | ORIGIN) + "\n")
    return folder


def _costs():
    draw = random.Random(0)
    for phase, times in (("forward", 1.0), ("backward", 3.1)):
        for length in LENGTHS:
            for name, (_, _, milliseconds, exponent, _, _) in SYSTEMS.items():
                seconds = times * milliseconds / 1e3 * (length / 1000) ** exponent * draw.uniform(0.97, 1.03)
                found = {
                    "seconds": seconds, "spread": [seconds * 0.97, seconds * 1.05], "best": seconds * 0.95,
                    "repetitions": 12,
                    "bytes": int(times * 2e6 * (length / 1000) ** (1.0 if exponent == 1 else 1.1) + 1.2e6),
                }  # fmt: skip
                yield _line("cost", name, f"{phase}/{length}", found, phase=phase, length=length)
    for position in POSITIONS:
        for name, (_, _, milliseconds, exponent, _, _) in SYSTEMS.items():
            rest = dict(phase="decode", length=position)
            if name == "flowformer":
                reason = "flowformer does not decode step by step"
                yield _line("cost", name, f"decode/{position}", None, "skipped", reason, **rest)
                continue
            seconds = 1e-4 + 1e-6 * milliseconds * (position / 100 if exponent > 1 else 1)
            found = {
                "seconds": seconds, "spread": [seconds * 0.98, seconds * 1.1], "best": seconds * 0.96,
                "repetitions": 40, "state_bytes": 512 * position if exponent > 1 else 16_640,
            }  # fmt: skip
            yield _line("cost", name, f"decode/{position}", found, **rest)
    reason = "it takes more memory than there is"
    yield _line("cost", "moh", "forward/65536", None, "no memory", reason, phase="forward", length=65536)


def _qualities():
    draw = random.Random(1)
    for seed in SEEDS:
        for task in TASKS:
            for name, system in SYSTEMS.items():
                rest = dict(task=task["name"], seed=seed)
                unit = f"{task['name']}/{seed}"
                if name == "aaren" and task["name"] == "extrapolation" and seed == 1:
                    trace = "Traceback (most recent call last):\n  …\nValueError: the loss is nan"
                    yield _line(
                        "quality",
                        name,
                        unit,
                        None,
                        "failed",
                        "the loss is nan at step 12 of 400",
                        trace,
                        **rest,
                    )
                    continue
                yield _line("quality", name, unit, _found(draw, task, system, seed), **rest)


def _found(draw, task, system, seed):
    _, parts, milliseconds, exponent, recall, loss = system
    tokens = task["steps"] * task["batch"] * task["length"]
    last = {"recall": recall, "bytes": loss, "extrapolation": loss + 0.4}[task["name"]]
    value = last + draw.gauss(0, 0.012)
    steps = [round(tokens * at / 40) for at in range(1, 41)]
    start = 4.2 if task["name"] == "recall" else 5.5
    end = -3 * (recall - 1) if task["name"] == "recall" else loss
    found = {
        "value": value, "parameters": task["parameters"] + draw.randrange(-1500, 1500), "tokens": tokens,
        "seconds": 4.0 + milliseconds, "curves": [], "probe": None, "maps": [],
        "learning": [[at, end + (start - end) * exp(-6 * at / tokens) + draw.gauss(0, 0.02)] for at in steps],
    }  # fmt: skip
    if task["name"] == "recall":
        points = [
            [at, min(1, max(0, value * (1.1 - at / 200 * (1.2 - recall))))] for at in (4, 8, 16, 32, 56)
        ]
        found["curves"] = [{"measure": "accuracy", "over": "distance", "points": points, "trained_at": None}]
    if task["name"] == "extrapolation":
        points = [[64 * times, loss + 0.05 * times] for times in (1, 2, 4, 8)]
        found["curves"] = [{"measure": "nats a byte", "over": "length", "points": points, "trained_at": 64}]
    if seed == 0 and task["name"] == "recall" and parts[0] != "aaren":
        found["maps"] = [_map(draw, layer, head, exponent) for layer in (0, 1) for head in (0, 1)]
    return found


def _map(draw, layer, head, exponent):
    rows = []
    for i in range(MAP_TOKENS):
        weights = [exp(draw.gauss(0, 2 if exponent > 1 else 0.5)) if j <= i else 0 for j in range(MAP_TOKENS)]
        rows.append([round(weight / sum(weights), 4) for weight in weights])
    return {
        "layer": layer,
        "head": head,
        "matrix": rows,
        "tokens": [str(7 * at % 31) for at in range(MAP_TOKENS)],
    }


def _line(what, system, unit, found, outcome="measured", reason=None, traceback=None, **rest):
    return {
        "unit": f"{what}/{system}/{unit}", "what": what, "system": system, "outcome": outcome,
        "reason": reason, "traceback": traceback, "found": found, "took": 1.0,
    } | {"seed": 0} | rest  # fmt: skip
