"""What does the jobs of a comparison: processes on this machine, or somebody's cluster (`on_ray.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Protocol

from regardant.compare.hardware import cores


@dataclass(frozen=True)
class Done:
    """The answer to a job; or None, and how its process ended."""

    name: str
    answer: dict[str, Any] | None
    ended: str = ""


class Engine(Protocol):
    slots: int
    """Jobs at a time."""
    alone: int
    """Jobs at a time that want a machine to themselves."""
    threads: int | None
    """Of a job that is not alone; None: all that there are."""

    def submit(self, name: str, job: Mapping[str, Any], *, alone: bool) -> None:
        """Begin a job; there is a slot for it."""

    def wait(self, seconds: float) -> list[Done]:
        """What has ended since the last call, as soon as there is any."""

    def close(self) -> None:
        """End all jobs, done or not."""


class Processes:
    """Worker processes on this machine: one a core, or one for an accelerator. What they say goes to `log`.

    A worker that dies is replaced when there is a job for it.
    """

    def __init__(self, log: Path, *, slots: int | None = None):
        self.slots = slots or cores()
        self.alone, self.threads = 1, (1 if self.slots > 1 else None)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("ab")
        self._idle: list[subprocess.Popen[str]] = []
        self._busy: dict[str, subprocess.Popen[str]] = {}
        self._answers: Queue[Done] = Queue()
        for _ in range(self.slots):
            self._idle.append(self._start())

    def submit(self, name: str, job: Mapping[str, Any], *, alone: bool) -> None:
        worker = self._idle.pop(0) if self._idle else self._start()
        self._busy[name] = worker
        Thread(target=self._ask, args=(name, worker, json.dumps(job) + "\n"), daemon=True).start()

    def wait(self, seconds: float) -> list[Done]:
        try:
            done = [self._answers.get(timeout=seconds)]
        except Empty:
            return []
        while not self._answers.empty():
            done.append(self._answers.get())
        for each in done:
            worker = self._busy.pop(each.name)
            if each.answer is not None:
                self._idle.append(worker)
        return done

    def close(self) -> None:
        workers = [*self._idle, *self._busy.values()]
        self._idle, self._busy = [], {}
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()
        self._log.close()

    def _ask(self, name: str, worker: subprocess.Popen[str], line: str) -> None:
        try:
            worker.stdin.write(line)
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        if answer.endswith("\n"):
            self._answers.put(Done(name, json.loads(answer)))
        else:
            self._answers.put(Done(name, None, f"its process ended with status {worker.wait()}"))

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "regardant.compare.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
