"""What `regardant cost` says of backbones: parameters, multiply-adds, and time by the size of the image."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from regardant.cli.output import print_json, print_table
from regardant.compare.backbone_cost import BackboneCost, measure
from regardant.compare.machine import machine

COLUMNS = ("backbone", "image", "parameters, M", "multiply-adds, G", "forward, ms")


def cost_of_backbones(
    names: Sequence[str], *, sizes: Sequence[int], budget: float, device: torch.device, as_json: bool
) -> None:
    found = measure(
        names, sizes=sizes, budget=budget, device=str(device),
        progress=lambda now: print(now, file=sys.stderr, flush=True),
    )  # fmt: skip
    if as_json:
        print_json([asdict(each) for each in found])
        return
    print(f"{machine(device)}; torch {torch.__version__}; one image, float32, in eval mode.")
    print_table(COLUMNS, [_row(each) for each in found], right=COLUMNS[1:])


def _row(cost: BackboneCost) -> tuple[str, ...]:
    return (
        cost.system,
        f"{cost.size}×{cost.size}",
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.multiply_adds / 1e9:.3f}",
        "" if cost.seconds is None else f"{cost.seconds * 1e3:.1f}",
    )
