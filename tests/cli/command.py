"""The command line in a process of its own, here or on a copy of the package."""

import shutil
import subprocess
import sys
from pathlib import Path

import regardant

PACKAGE = Path(regardant.__file__).parent


def run(
    *arguments: str, options: tuple[str, ...] = (), folder: Path = PACKAGE.parent
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-m", "regardant", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
    )


def copy_of_the_package(folder: Path) -> Path:
    """The package in another folder, to be changed by a test; without evidence."""
    ignored = shutil.ignore_patterns("__pycache__", "evidence")
    return Path(shutil.copytree(PACKAGE, folder / "regardant", ignore=ignored))
