"""Where a measurement was made: the machine, and the versions of what ran."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from regardant import __version__
from regardant.compare.hardware import processor
from regardant.core.errors import require


def machine(device: torch.device | str = "cpu") -> str:
    """One line on what computes: "AMD EPYC, 2 threads, AVX512" or the accelerator's name."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return torch.cuda.get_device_name(kind)
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{processor()}, {torch.get_num_threads()} threads, {capability}" if kind.type == "cpu" else kind.type
    )


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python, torch, this package, and of other packages (where installed)."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "regardant": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def choose_device(name: str) -> torch.device:
    """The device of this name, seen to work; `auto` is the accelerator where there is one."""
    if name == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"device is {name!r}, which does not work here: {reason}") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The floating-point type of this name, if the device computes in it."""
    from regardant.core.checks import computes_in

    dtype = getattr(torch, name, None)
    require(
        isinstance(dtype, torch.dtype) and dtype.is_floating_point,
        f"dtype is {name!r}, but it is one of float32, bfloat16, float16 and float64",
    )
    require(
        computes_in(device.type, dtype),
        f"dtype is {name!r}, which {device} does not compute in: use float32 or bfloat16",
    )
    return dtype
