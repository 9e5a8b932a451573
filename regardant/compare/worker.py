"""A process that does jobs: reads them from stdin as JSON lines, and answers each with one on stdout.

python -m regardant.compare.worker
"""

from __future__ import annotations

import json
import os
import sys
from threading import Thread
from time import sleep

WATCHED = 0.5
"""Seconds between two looks at whether whoever started this process is still there."""


def _end_with(parent: int) -> None:
    """A worker whose parent was killed must not go on: somebody may already have begun again."""
    while os.getppid() == parent:
        sleep(WATCHED)
    os._exit(1)


def main() -> None:
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # What a system prints is no answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    from regardant.compare.bench import Bench
    from regardant.compare.peak import stay_within_what_is_free

    stay_within_what_is_free()
    bench = Bench()
    for line in sys.stdin:
        answers.write(json.dumps(bench.do(json.loads(line)), allow_nan=False) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
