"""What an experiment ran on: versions with the commit, and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from regardant.atlas.catalog import PACKAGE
from regardant.compare.machine import processor
from regardant.compare.machine import versions as package_versions


def versions() -> dict[str, str]:
    """Of Python, torch and this package; and its commit, where the package is a git checkout."""
    found = package_versions()
    commit = commit_of(PACKAGE.parent)
    return found if commit is None else found | {"commit": commit}


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out, with a + behind it where tracked files differ from it."""
    if not (folder / ".git").exists():
        return None
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def hardware() -> dict[str, str | int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1 if affinity is None else len(affinity(0)),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
