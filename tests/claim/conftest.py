import sys
from types import ModuleType

import pytest

from tests.claim.small import small_package


@pytest.fixture
def package(tmp_path):
    return small_package(tmp_path)


@pytest.fixture
def experiment(package, monkeypatch):
    """The experiment of `tiny`, as an import of its module finds it."""
    module = ModuleType("regardant.claim.tiny")
    exec((package / "claim" / "tiny.py").read_text(), module.__dict__)
    monkeypatch.setitem(sys.modules, "regardant.claim.tiny", module)
    return module
