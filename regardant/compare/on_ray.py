"""A comparison over a cluster: every measurement is a task of Ray's, and its line comes back to one place.

Without RAY_ADDRESS a Ray of this machine is started. What is timed asks for all cores of a node, so that
nothing runs beside it there; a model asks for one core, or for an accelerator. A task whose worker process is
killed is begun again by Ray; it gave no line, so nothing is there twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

from regardant.compare.engine import Done
from regardant.core.errors import require

RETRIES = 2
"""How often a task is begun again whose worker died."""


class OnRay:
    """Ray as an engine. Machines may differ: each line says where it was measured."""

    def __init__(self) -> None:
        require(
            find_spec("ray") is not None, "engine is ray, which is not installed: pip install regardant[ray]"
        )
        import ray

        self._ray, self._began = ray, not ray.is_initialized()
        if self._began:
            quiet = dict(include_dashboard=False, log_to_driver=False, configure_logging=False)
            address = os.environ.get("RAY_ADDRESS")
            ray.init(address=address, **({"log_to_driver": False} if address else quiet))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._accelerator = bool(ray.cluster_resources().get("GPU", 0))
        self._node = int(min(node.get("CPU", 1) for node in nodes))
        each = "GPU" if self._accelerator else "CPU"
        self.slots = max(int(ray.cluster_resources().get(each, 1)), 1)
        self.alone = len(nodes) if not self._accelerator else self.slots
        self.threads = None if self._accelerator else 1
        self._remote = ray.remote(max_retries=RETRIES)(_do)
        self._running: dict[Any, str] = {}

    def submit(self, name: str, job: Mapping[str, Any], *, alone: bool) -> None:
        wants = {"num_cpus": self._node if alone and not self._accelerator else 1}
        wants |= {"num_gpus": 1} if self._accelerator else {}
        self._running[self._remote.options(name=name, **wants).remote(dict(job))] = name

    def wait(self, seconds: float) -> list[Done]:
        if not self._running:
            return []
        ready, _ = self._ray.wait([*self._running], num_returns=1, timeout=seconds)
        done = []
        for task in ready:
            name = self._running.pop(task)
            try:
                done.append(Done(name, self._ray.get(task)))
            except self._ray.exceptions.RayError as error:
                done.append(Done(name, None, f"its worker did not come back ({type(error).__name__})"))
        return done

    def close(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running = {}
        if self._began:
            self._ray.shutdown()


def _do(job: Mapping[str, Any]) -> dict[str, Any]:
    return _bench().do(job)


@cache
def _bench() -> Any:
    """A worker process keeps what is costly to make."""
    from regardant.compare.bench import Bench

    return Bench()
