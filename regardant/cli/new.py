"""`regardant new`: the three files of a paper."""

from __future__ import annotations


def new() -> None:
    pass
