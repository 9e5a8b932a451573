"""The tasks that come without a card keep the contract of tasks, too."""

import pytest

from regardant.contract import check
from regardant.task.shape_classes import ShapeClasses

SMALL = ShapeClasses(held_out=64)
TASKS = {
    "bytes:Bytes": {},
    "corruption:Corrupted": {"task": SMALL},
    "copying:Copying": {},
    "digits:DigitPixels": {},
    "digits:DigitRows": {},
    "digits:DigitSequence": {},
    "digits:NoisyDigits": {},
    "far_reference:CuedRow": {},
    "far_reference:FarReference": {},
    "few_examples:FewExamples": {"task": SMALL},
    "extrapolation:Extrapolation": {},
    "forecast:Forecast": {},
    "needle:Needle": {},
    "recall:Recall": {"vocabulary": 128},
    "reference_patch:ReferencePatch": {},
    "shape_classes:SameOrDifferent": {"textures": 2},
    "shape_classes:ShapeClasses": {},
    "shape_classes:ShapeMasks": {},
    "shape_classes:TextureAndLayout": {},
    "super_resolution:SuperResolution": {"side": 16},
    "trigger_copy:TriggerCopy": {},
}


@pytest.mark.parametrize("task", TASKS)
def test_keeps_its_contract(task):
    report = check(f"regardant.task.{task}", kind="task", config=TASKS[task], examples=3)
    assert report.passed, str(report)
