"""What is trained to see what a system is worth, in three sizes. No torch is imported here.

One recipe for all: the same small network, tokens, learning rate and schedule; only the mixer differs, and
the MLPs are made narrower or wider until every network has the same number of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from regardant.core.errors import unknown

LEVELS = ("small", "medium", "large")

LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Setting:
    """A trial in one size. Steps: below `least` nothing can be seen, `enough` separate the systems, and more
    than `most` would change nothing."""

    task: Mapping[str, Any]
    """Options of the task."""
    batch: int
    least: int
    enough: int
    most: int


@dataclass(frozen=True)
class Trial:
    name: str
    title: str
    measure: str
    higher_is_better: bool
    target: str
    """The task's class, module:Class under regardant.task."""
    sizes: Mapping[str, Setting]
    about: str
    """Filled in with the options of the task."""
    kinds: tuple[str, ...] = ("sequence",)
    causal: bool = True
    """Whether the network must not see the future; where it may, systems that can be causal still are."""
    positions: bool = True
    """Whether the network learns positions (not where it is read beyond them)."""

    def chance(self, level: str) -> float | None:
        options = self.sizes[level].task
        return {
            "recall": lambda: 2 / options.get("vocabulary", 2),
            "bytes": lambda: log(256),
            "extrapolation": lambda: log(256),
            "copying": lambda: 1 / options.get("symbols", 1),
            "needle": lambda: 1 / options.get("values", 1),
            "regression": lambda: 1 + options.get("noise", 0.0),
            "pixels": lambda: 0.1,
            "digits": lambda: 0.1,
            "shapes": lambda: 1 / options.get("kinds", 1),
        }[self.name]()


def _sizes(small: Setting, medium: Setting, large: Setting) -> dict[str, Setting]:
    return dict(zip(LEVELS, (small, medium, large)))


_ALL = (
    Trial(
        "recall", "multi-query associative recall", "accuracy", True, "recall:Recall",
        _sizes(
            Setting(dict(vocabulary=72, length=64, pairs=16, held_out=128), 32, 120, 300, 1000),
            Setting(dict(vocabulary=136, length=128, pairs=32, held_out=256), 32, 300, 1000, 4000),
            Setting(dict(vocabulary=264, length=256, pairs=64, held_out=256), 32, 600, 3000, 12000),
        ),
        "{pairs} keys with values in {length} tokens over {vocabulary} symbols, every key asked once more",
    ),
    Trial(
        "bytes", "bytes of the standard library", "nats a byte", False, "bytes:Bytes",
        _sizes(
            Setting(dict(length=64, held_out=128), 32, 80, 250, 3000),
            Setting(dict(length=128, held_out=256), 32, 300, 2000, 20000),
            Setting(dict(length=256, held_out=256), 64, 1000, 8000, 60000),
        ),
        "windows of {length} bytes of Python's standard library; modules of their own are held out",
    ),
    Trial(
        "needle", "needle retrieval", "accuracy", True, "needle:Needle",
        _sizes(
            Setting(dict(length=64, needles=4, values=16, noise=16, held_out=512), 32, 150, 400, 1500),
            Setting(dict(length=256, needles=8, values=32, noise=32, held_out=512), 32, 400, 2000, 6000),
            Setting(dict(length=1024, needles=8, values=32, noise=32, held_out=512), 32, 600, 4000, 12000),
        ),
        "one of {needles} marked values in {length} tokens, asked for at the end",
    ),
    Trial(
        "extrapolation", "length extrapolation", "nats a byte at 8 times the length", False,
        "extrapolation:Extrapolation",
        _sizes(
            Setting(dict(length=64, times=8, held_out=24), 32, 80, 250, 3000),
            Setting(dict(length=128, times=8, held_out=48), 32, 300, 2000, 20000),
            Setting(dict(length=256, times=8, held_out=64), 64, 1000, 8000, 60000),
        ),
        "bytes of the standard library, learned in windows of {length}, read at the end of windows "
        "{times} times as long; no positions are learned",
        positions=False,
    ),
    Trial(
        "copying", "copying over distance", "accuracy", True, "copying:Copying",
        _sizes(
            Setting(dict(symbols=16, string=8, pauses=(0, 8, 16, 32), held_out=64), 32, 150, 400, 1500),
            Setting(dict(symbols=16, string=16, pauses=(0, 32, 64, 128), held_out=64), 32, 400, 2000, 6000),
            Setting(dict(symbols=32, string=32, pauses=(0, 64, 256, 512), held_out=64), 32, 600, 4000, 12000),
        ),
        "strings of {string} out of {symbols} symbols, said again after pauses of {pauses} tokens",
    ),
    Trial(
        "regression", "linear regression in context", "mean squared error", False,
        "in_context_regression:InContextRegression",
        _sizes(
            Setting(dict(features=3, length=24, noise=0.1, held_out=1024), 64, 150, 400, 2000),
            Setting(dict(features=5, length=40, noise=0.1, held_out=2048), 64, 500, 2500, 10000),
            Setting(dict(features=8, length=64, noise=0.1, held_out=4096), 64, 1000, 8000, 40000),
        ),
        "{length} examples of a line in {features} dimensions, noise {noise}, and the next value",
        causal=False,
    ),
    Trial(
        "pixels", "digits pixel by pixel", "accuracy", True, "digits:DigitSequence",
        _sizes(
            Setting({}, 32, 100, 300, 1500), Setting({}, 64, 200, 800, 3000), Setting({}, 64, 400, 2000, 6000)
        ),
        "handwritten digits as sequences of 64 grey levels, told at the last",
        causal=False,
    ),
    Trial(
        "digits", "noisy digits", "accuracy", True, "digits:NoisyDigits",
        _sizes(
            Setting(dict(noise=0.5, scale=1), 32, 100, 300, 1500),
            Setting(dict(noise=0.5, scale=2), 32, 200, 800, 3000),
            Setting(dict(noise=0.7, scale=4), 32, 400, 2000, 6000),
        ),
        "handwritten digits of 8 × 8 pixels, {scale} times as large, under noise of {noise}",
        ("grid",), causal=False,
    ),
    Trial(
        "shapes", "classes of shapes", "accuracy", True, "shape_classes:ShapeClasses",
        _sizes(
            Setting(dict(side=16, kinds=4, held_out=512), 32, 100, 300, 2000),
            Setting(dict(side=32, kinds=8, held_out=512), 32, 300, 1500, 8000),
            Setting(dict(side=64, kinds=8, held_out=1024), 32, 600, 4000, 20000),
        ),
        "one of {kinds} coloured shapes in {side} × {side} pixels, anywhere, turned anyhow",
        ("grid",), causal=False,
    ),
)  # fmt: skip
TRIALS: Mapping[str, Trial] = {each.name: each for each in _ALL}
"""By name; where none is asked for, the first ones are taken as far as the budget goes."""


def choose_trials(kind: str, asked: Sequence[str] | None) -> list[str]:
    """The names of the trials for this kind of systems; those asked for, or all in their order."""
    if asked is None:
        return [name for name, trial in TRIALS.items() if kind in trial.kinds]
    for name in asked:
        if name not in TRIALS:
            raise unknown("task", name, TRIALS)
        if kind not in TRIALS[name].kinds:
            raise ValueError(
                f"tasks holds {name!r}, which is for systems of {' and '.join(TRIALS[name].kinds)}, "
                f"but these are of {kind}"
            )
    return list(dict.fromkeys(asked))
