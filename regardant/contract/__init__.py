"""The contract suites: does a layer keep its word?

    report = check("my_module:MyAttention")     # or a class, a factory, an instance
    print(report)
    reports = run(["softmax", "moh"])           # systems of the atlas, by name

A suite is a list of properties (`regardant.contract.suites`); each gets a verdict that says what
went wrong where. `hypothesis` draws the shapes and configurations, always the same for one seed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regardant.contract.report import Report, Verdict

if TYPE_CHECKING:
    from regardant.contract.suites import check as check
    from regardant.contract.suites import run as run

__all__ = ["Report", "Verdict", "check", "run"]


def __getattr__(name: str) -> Any:
    # The suites import torch; whoever only reads reports does not wait for it.
    if name not in ("check", "run"):
        raise AttributeError(f"module 'regardant.contract' has no attribute {name!r}")
    return getattr(import_module("regardant.contract.suites"), name)
