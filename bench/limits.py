"""This machine's peaks: what matrix products, copies, exponentials and calls cost at best.

    python -m bench.limits

A share of a limit means something only with peaks of the same run, so the scripts beside this one
measure them again. Best of the repetitions: a limit is what the machine can do when left alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from regardant.compare.clock import clock
from regardant.compare.machine import machine, versions


@dataclass(frozen=True)
class Limits:
    """Peaks a second: floating-point operations of a product, bytes read and written by a copy and read
    by a sum, exponentials; and the seconds of one call on one element."""

    multiply: float
    multiply_bfloat16: float
    copy: float
    read: float
    exponential: float
    call: float


def best(call: Callable[[], object], *, budget: float, device: torch.device) -> float:
    """The seconds of the fastest repetition."""
    return next(clock({"only": call}, budget=budget, least=10, most=100_000, device=device))[1].best


@torch.no_grad()
def measure(*, budget: float = 0.5, device: torch.device | str = "cpu") -> Limits:
    """The peaks, with `budget` seconds for each of them."""
    device = torch.device(device)
    large = 8192 if device.type == "cuda" else 2048

    def products(dtype: torch.dtype, sides: tuple[int, ...]) -> float:
        return max(_product(side, dtype, budget / len(sides), device) for side in sides)

    # Far more than any cache holds.
    far = torch.empty((4 if device.type == "cuda" else 1) << 26, device=device).normal_()
    there = torch.empty_like(far)
    # Little enough to stay in the cache, enough to keep every thread busy.
    near = torch.empty(1 << (26 if device.type == "cuda" else 16), device=device).normal_()
    result, one = torch.empty_like(near), torch.zeros(1, device=device)
    moved = far.numel() * far.element_size()
    return Limits(
        multiply=products(torch.float32, (large // 2, large)),
        multiply_bfloat16=products(torch.bfloat16, (large // 2,)),
        copy=2 * moved / best(lambda: there.copy_(far), budget=budget, device=device),
        read=moved / best(lambda: far.sum(), budget=budget, device=device),
        exponential=near.numel() / best(lambda: torch.exp(near, out=result), budget=budget, device=device),
        call=best(lambda: one.add_(0.0), budget=budget, device=device),
    )


def _product(side: int, dtype: torch.dtype, budget: float, device: torch.device) -> float:
    def draw() -> Tensor:
        return torch.empty(side, side, device=device).normal_().to(dtype)

    left, right, out = draw(), draw(), draw()
    return 2 * side**3 / best(lambda: torch.mm(left, right, out=out), budget=budget, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each peak")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    found = measure(budget=asked.budget, device=asked.device)
    print(
        json.dumps(dict(machine=machine(asked.device), versions=versions(), limits=asdict(found)), indent=2)
    )


if __name__ == "__main__":
    main()
