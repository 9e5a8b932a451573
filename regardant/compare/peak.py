"""Peak memory, really: how far the memory of a process of its own rises while a system runs once.

On a CPU every run has a fresh process, forked off a server that has torch imported and has done
nothing else. The process makes the layer and the input and runs a short input, so that what is
allocated once is there; then the peak of its resident memory is reset, the system runs, and the rise
over what was resident before is the answer, output included. The C library is told to take large
tensors from the system and to return them at once: what is freed does not count, nor hide what comes
next. On CUDA the allocator of torch keeps the same account.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch

from regardant.atlas import catalog
from regardant.compare.workload import Setting, Workload

SHORT = 64
"""The length of the run that comes before."""

RETURN_AT_ONCE = {
    "MALLOC_MMAP_THRESHOLD_": str(256 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 1024),
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}
DISABLE_HUGE_PAGES = 41  # prctl's PR_SET_THP_DISABLE: a tensor would count as whole huge pages.


class OutOfMemory(Exception):
    """The run needs more memory than there is."""


def rise(workload: Workload, phase: str, length: int) -> int:
    """Bytes that running once takes at its peak, in this process and on this device."""
    workload.call(phase, SHORT)()
    call = workload.call(phase, length)
    device = torch.device(workload.setting.device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = reset_peak()
    call()
    return max(peak() - before, 0)


def reset_peak() -> int:
    """Forget the peak so far, where the system can; the bytes that count as used from here on."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return peak()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak() -> int:
    """The most bytes that this process has had resident since `reset_peak`."""
    if sys.platform.startswith("linux"):
        return _status("VmHWM")
    from resource import RUSAGE_SELF, getrusage

    most = getrusage(RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


class PeakMeter:
    """Measures peaks, each in a process of its own. Use it as a context manager."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._server is not None:
            self._server.stdin.close()
            self._server.terminate()
            self._server.wait()
            self._server = None

    def measure(self, setting: Setting, phase: str, length: int, *, threads: int) -> int:
        """Bytes; raises `OutOfMemory`, or `RuntimeError` where the run failed."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "regardant.compare.peak"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, **RETURN_AT_ONCE, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
        job = dict(setting=setting.asdict(), phase=phase, length=length, threads=threads)
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline() or '{"failed": "the measuring process ended"}')
        if "short" in answer:
            raise OutOfMemory(answer["short"])
        if "failed" in answer:
            raise RuntimeError(f"{setting.system} {phase} at {length} failed: {answer['failed']}")
        return answer["bytes"]


def _serve() -> None:
    """Read jobs from stdin, answer each on stdout with what its own process found."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(DISABLE_HUGE_PAGES, 1, 0, 0, 0)
    _prepare()
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    for line in sys.stdin:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(there, json.loads(line)))
        process.start()
        there.close()
        try:
            answer = here.recv()
        except EOFError:
            process.join()
            # The system kills with signal 9 what takes more memory than there is.
            ended = f"its process ended with status {process.exitcode}"
            answer = {"short": ended} if process.exitcode == -9 else {"failed": ended}
        process.join()
        print(json.dumps(answer), flush=True)


def _prepare() -> None:
    """Do once what every process would do, as long as it starts no thread: a fork has only one."""
    catalog.systems()
    one = torch.ones((), requires_grad=True)
    torch.autograd.grad(one * one, one, torch.ones(()))
    gc.freeze()


def _answer(out: Connection, job: Mapping[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    stay_within_what_is_free()
    try:
        out.send({"bytes": rise(Workload(Setting(**job["setting"])), job["phase"], job["length"])})
    except (MemoryError, torch.OutOfMemoryError) as error:
        out.send({"short": str(error)})
    except RuntimeError as error:
        out.send({"short" if "allocate memory" in str(error) else "failed": str(error)})


def stay_within_what_is_free() -> None:
    """Fail in this process, before the machine is out of memory."""
    if not sys.platform.startswith("linux"):
        return
    from resource import RLIMIT_DATA, getrlimit, setrlimit

    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    setrlimit(RLIMIT_DATA, (_status("VmData") + free * 9 // 10, getrlimit(RLIMIT_DATA)[1]))


if __name__ == "__main__":
    _serve()
