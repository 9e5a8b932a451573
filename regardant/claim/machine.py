"""What an experiment ran on: versions with the commit, and hardware."""

from __future__ import annotations

import os
import platform

import torch

from regardant.atlas.catalog import PACKAGE
from regardant.compare.commit import commit_of
from regardant.compare.hardware import processor
from regardant.compare.machine import versions as package_versions


def versions() -> dict[str, str]:
    """Of Python, torch and this package; and its commit, where the package is a git checkout."""
    found = package_versions()
    commit = commit_of(PACKAGE.parent)
    return found if commit is None else found | {"commit": commit}


def hardware() -> dict[str, str | int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1 if affinity is None else len(affinity(0)),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
