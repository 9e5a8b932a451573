"""Every system of the atlas keeps its contract."""

import pytest

from regardant.contract import run
from regardant.contract.suites import with_a_suite


@pytest.mark.parametrize("name", with_a_suite())
def test_keeps_its_contract(name):
    (report,) = run([name], examples=5)
    assert report.passed, str(report)
    assert report.name == name
