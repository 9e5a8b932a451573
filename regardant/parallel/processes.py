"""Ranks on this machine: a function run by as many gloo processes as asked for, for tests and measurements.

    outputs = on_ranks(4, work, x, y)        # work(mesh, x, y) in each; what each returned, by rank

A training is launched by torchrun; this is for what wants the answers of all ranks in one place.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from regardant.core.errors import require

Result = TypeVar("Result")
PATIENCE = 300.0
"""Seconds for everything together, on a machine that has other things to do."""


def on_ranks(
    ranks: int, function: Callable[..., Result], *arguments: Any, patience: float = PATIENCE, threads: int = 1
) -> list[Result]:
    """What `function(mesh, *arguments)` returns on each of so many ranks.

    The function is found by its name, so it stands at the top of a module. A `ValueError` on any rank is
    raised here; anything else that ends a process is a `RuntimeError`.
    """
    require(ranks >= 1, f"ranks is {ranks}, but at least 1 process runs")
    # Processes forked off a server that has imported torch and done nothing else start in no time.
    # Optimisers and dispatch modes import the compiler as they are first made, which takes seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    with tempfile.TemporaryDirectory() as folder:
        meeting, pipes, processes = f"file://{Path(folder) / 'meeting'}", [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            task = (theirs, rank, ranks, meeting, patience, threads, function, arguments)
            processes.append(context.Process(target=_rank, args=task, daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        try:
            return _collect(pipes, patience)
        finally:
            for pipe in pipes:
                pipe.close()
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()


def _collect(pipes: list[Connection], patience: float) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < len(pipes):
        ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in found], timeout=patience)
        if not ready:
            raise RuntimeError(f"no rank has answered for {patience:g} seconds: they wait for each other")
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                kind, value = pipe.recv()
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a word") from None
            if kind == "refused":
                raise ValueError(value)
            if kind == "failed":
                raise RuntimeError(f"rank {rank}: {value}")
            found[rank] = value
    for pipe in pipes:
        pipe.send("thanks")
    return [found[rank] for rank in range(len(pipes))]


def _rank(pipe, rank, ranks, meeting, patience, threads, function, arguments) -> None:
    torch.set_num_threads(threads)
    try:
        mesh = _join(rank, ranks, meeting, patience)
        answer = ("found", function(mesh, *arguments))
    except ValueError as refused:
        answer = ("refused", str(refused))
    except RuntimeError as failed:
        answer = ("failed", str(failed))
    try:
        pipe.send(answer)
        pipe.recv()  # tensors are handed over as shared memory, which must not go before they are there
    except (EOFError, OSError):
        return  # nobody listens any more: another rank has refused
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(rank: int, ranks: int, meeting: str, patience: float) -> DeviceMesh:
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=ranks, timeout=timedelta(seconds=patience)
    )
    return init_device_mesh("cpu", (ranks,), mesh_dim_names=("sequence",))
