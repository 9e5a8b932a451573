from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def small_layers(monkeypatch):
    """`small_layers:Square` is a system's name, here and in the processes that are started from here."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
