"""How evidence is shown."""

import json

from regardant.atlas import record
from regardant.claim.outcome import Criterion, Figure, Outcome, Spread
from tests.cli.command import copy_of_the_package, run

OUTCOME = Outcome(
    setting="2 layers of 64",
    figures=[
        Figure("loss", ours={"moh": Spread((1.0, 2.0))}, baseline={"softmax": Spread((2.5,))}),
        Figure("parameters", ours={"moh": Spread((1000.0,))}),
    ],
    criteria=[
        Criterion("quality", "loss of moh against softmax", 1.5, "at most", 2.5),
        Criterion("quality", "it is finite", float("nan"), "at least", 0.0),
    ],
    notes=["a small note"],
)


def test_the_evidence_on_a_claim_is_told_in_full(tmp_path) -> None:
    package = copy_of_the_package(tmp_path)
    found = OUTCOME.as_json() | {"seeds": [0, 1], "versions": {"torch": "2.13.0"}, "seconds": 1.5}
    record.record_claim("moh", found, package=package)
    verdict = {"passed": True, "fingerprint": "ab", "properties": {"causality": "passed"}}
    record.record_contract("moh", "moh", verdict, package=package)
    lines = [" ".join(line.split()) for line in run("show", "moh", folder=tmp_path).stdout.splitlines()]
    for line in (
        "verdict does not hold here",
        "setting 2 layers of 64",
        "loss ours: moh 1.5 ± 0.71",
        "baseline: softmax 2.5",
        "parameters ours: moh 1000",
        "baseline: none",
        "holds loss of moh against softmax: 1.5 at most 2.5",
        "does not hold it is finite: nan at least 0",
        "note a small note",
        "seeds [0, 1]",
        "versions.torch 2.13.0",
        "contract: properties.causality passed",
        "contract: passed true",
    ):
        assert line in lines
    about = json.loads(run("show", "moh", "--json", folder=tmp_path).stdout)
    assert about["evidence"]["claim"]["criteria"][0]["holds"] is True
    assert about["systems"][0]["contract"] == verdict
    assert about["evidence"]["contract"] == {"moh": verdict}


def test_corrupt_evidence_is_named_and_exit_code_2(tmp_path) -> None:
    package = copy_of_the_package(tmp_path)
    path = record.locate("moh", package=package)
    path.parent.mkdir(exist_ok=True)
    path.write_text("{")
    for command in (("show", "moh"), ("list",), ("status",)):
        done = run(*command, folder=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and "moh.json is not valid JSON" in done.stderr
