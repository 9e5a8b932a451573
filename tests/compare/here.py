"""An engine in this very process, one job at a time: comparisons are tried on it without other processes."""

from __future__ import annotations

import json

from regardant.compare.bench import Bench
from regardant.compare.engine import Done


class Here:
    """Jobs and answers go through JSON, as between processes. `dies` says of units how often their process
    dies before it answers; after `stop_after` answers somebody has waited enough (`KeyboardInterrupt`)."""

    slots, alone, threads = 2, 1, 1

    def __init__(self, *, dies=None, stop_after=None):
        self.bench, self.dies, self.stop_after = Bench(), dict(dies or {}), stop_after
        self.asked, self.begun, self.closed = [], [], False

    def submit(self, name, job, *, alone):
        assert not alone or not self.begun
        assert len(self.begun) < self.slots
        self.begun.append((name, json.dumps(job), alone))

    def wait(self, seconds):
        if not self.begun:
            return []
        name, job, alone = self.begun.pop(0)
        self.asked.append((name, alone))
        if self.stop_after is not None:
            self.stop_after -= 1
            if self.stop_after < 0:
                raise KeyboardInterrupt
        if self.dies.get(name, 0) > 0:
            self.dies[name] -= 1
            return [Done(name, None, "its process ended with status -9")]
        return [Done(name, json.loads(json.dumps(self.bench.do(json.loads(job)), allow_nan=False)))]

    def close(self):
        self.closed = True
