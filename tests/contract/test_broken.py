"""The suites can fail: each broken system fails what it breaks, for its own reason, and nothing else."""

import pytest

from regardant.contract import check
from regardant.contract.suites import SUITES
from tests.contract.broken import ALSO, BROKEN
from tests.contract.sound import DenseRule, Near, PlainRule, PlainSoftmax, RunningMean, Squeeze


@pytest.mark.parametrize("system", BROKEN, ids=lambda system: system.__name__)
def test_breaks_only_this(system):
    report = check(system, examples=8)
    said = {verdict.property: verdict.detail for verdict in report.failures}
    wanted = BROKEN[system]
    assert set(wanted) <= set(said), str(report)
    assert set(said) <= set(wanted) | ALSO.get(system, set()), str(report)
    for title, part in wanted.items():
        assert part in said[title], said[title]


@pytest.mark.parametrize("system", [PlainSoftmax, DenseRule, PlainRule, RunningMean, Near, Squeeze])
def test_sound_systems_pass(system):
    report = check(system, examples=8)
    assert report.passed, str(report)


def test_every_property_of_every_suite_can_fail():
    shown = {title for properties in BROKEN.values() for title in properties}
    everything = {title for suite in SUITES.values() for title in suite}
    # `shape` is shown in test_foreign: what has no output to speak of fails everywhere else, too.
    assert everything - shown == {"shape"}
