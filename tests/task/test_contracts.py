"""The tasks that come without a card keep the contract of tasks, too."""

import pytest

from regardant.contract import check

TASKS = {
    "bytes:Bytes": {},
    "digits:DigitPixels": {},
    "digits:DigitRows": {},
    "digits:NoisyDigits": {},
    "forecast:Forecast": {},
    "recall:Recall": {"vocabulary": 128},
    "reference_patch:ReferencePatch": {},
    "trigger_copy:TriggerCopy": {},
}


@pytest.mark.parametrize("task", TASKS)
def test_keeps_its_contract(task):
    report = check(f"regardant.task.{task}", kind="task", config=TASKS[task], examples=3)
    assert report.passed, str(report)
