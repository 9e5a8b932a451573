"""The suite of backbones can fail, each property for its own reason."""

import pytest

from regardant.contract import check
from regardant.contract.suites import SUITES
from tests.contract import broken_backbones as broken
from tests.contract.breaking import assert_breaks_only
from tests.contract.sound_backbone import Local, Worded

BROKEN: dict[type, dict[str, str]] = {
    broken.TellsAnotherStride: {"features": "and a stride of 4 it is (1, 8, 2, 4)"},
    broken.TellsOtherChannels: {"features": "map 1 of an image of 7×13 is (1, 8, 2, 3), but with 4 channels"},
    broken.CutsTheBorder: {"features": "map 0 of an image of 33×64 is (1, 4, 16, 32)"},
    broken.TakesAnything: {"sizes": "an image of 1×1 with a stride of 6"},
    broken.SeesMore: {"receptive field": "position 0 of map 0 sees pixel (0, 4) of an image of 7×13"},
    broken.SaysThatItSeesAll: {"reach": "position 0 of map 0 does not see pixel (0, 4)"},
    broken.VariantOfAnother: {"variants": "variant local_tiny raised TypeError"},
    broken.FusesToSomethingElse: {"fuse": "fuse changed the output by"},
    broken.LoadsAnything: {"checkpoint": "a checkpoint of something else"},
}
ALSO: dict[type, set[str]] = {
    # Where the map is not what is said, its field is not either.
    broken.TellsAnotherStride: {"sizes", "errors"},
    broken.CutsTheBorder: {"receptive field", "reach"},
    broken.TakesAnything: {"errors"},
}


@pytest.mark.parametrize("system", BROKEN, ids=lambda system: system.__name__)
def test_breaks_only_this(system):
    assert_breaks_only(system, BROKEN[system], ALSO.get(system, set()))


@pytest.mark.parametrize("system", [Local, Worded])
def test_sound_backbones_pass(system):
    report = check(system, examples=6)
    assert report.passed, str(report)
    assert report.kind == "backbone"


def test_every_property_of_backbones_can_fail():
    shown = {title for properties in BROKEN.values() for title in properties}
    assert set(SUITES["backbone"]) - set(SUITES["network"]) <= shown
