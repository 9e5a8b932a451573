"""A card's way from card to built to checked, and back when the code changes."""

import pytest

from regardant.atlas import record, source
from regardant.atlas.catalog import card, cards
from regardant.atlas.scaffold import scaffold
from regardant.atlas.skeleton import SYSTEMS
from regardant.atlas.status import Status, status
from tests.atlas.small_package import SYSTEM, put_source

MOTH = "regardant.sequence.moth"


def status_of(slug: str, package) -> Status:
    return status(card(slug, package=package), package=package)


def pass_contract(slug: str, system: str, module: str, package, *, passed: bool = True) -> None:
    verdict = {"passed": passed, "fingerprint": source.fingerprint(module, package=package)}
    record.record_contract(slug, system, verdict, package=package)


def file_claim(slug: str, modules: list[str], package) -> None:
    prints = {module: source.fingerprint(module, package=package) for module in modules}
    record.record_claim(slug, {"verdict": "does not hold here", "fingerprint": prints}, package=package)


def test_from_card_to_checked(package) -> None:
    assert status_of("moth", package) == Status("card", ("the contract of moth has no verdict on file",))
    pass_contract("moth", "moth", MOTH, package)
    assert status_of("moth", package) == Status("built", ("the claim has no evidence on file",))
    file_claim("moth", [MOTH], package)
    assert status_of("moth", package) == Status("checked")


def test_a_changed_system_falls_back_and_a_changed_comment_does_not(package) -> None:
    pass_contract("moth", "moth", MOTH, package)
    file_claim("moth", [MOTH], package)
    put_source(package, MOTH, SYSTEM.replace('"""One system."""', '"""One fine system."""'))
    assert status_of("moth", package).state == "checked"
    put_source(package, MOTH, SYSTEM.replace("chosen: int = 2", "chosen: int = 3"))
    assert status_of("moth", package) == Status(
        "card", (f"the contract's verdict on moth is for an earlier version of {MOTH}",)
    )
    pass_contract("moth", "moth", MOTH, package)
    assert status_of("moth", package) == Status(
        "built", (f"the claim's evidence is for an earlier version of {MOTH}",)
    )


def test_a_broken_contract_is_not_built(package) -> None:
    pass_contract("moth", "moth", MOTH, package, passed=False)
    file_claim("moth", [MOTH], package)
    assert status_of("moth", package) == Status("card", ("moth does not pass its contract",))


def test_the_claim_alone_does_not_build(package) -> None:
    file_claim("moth", [MOTH], package)
    assert status_of("moth", package).state == "card"


def test_every_system_of_a_card_counts(package) -> None:
    left, right = "regardant.grid.left", "regardant.grid.right"
    assert status_of("twins", package) == Status(
        "card", (f"{left} does not exist", f"{right} does not exist")
    )
    put_source(package, left, "class Left: ...\n")
    put_source(package, right, "class Wrong: ...\n")
    pass_contract("twins", "left", left, package)
    assert status_of("twins", package) == Status("card", (f"{right} does not define Right",))
    put_source(package, right, "class Right: ...\n")
    pass_contract("twins", "right", right, package)
    file_claim("twins", [left], package)
    assert status_of("twins", package) == Status("built", (f"the claim's evidence does not cover {right}",))
    file_claim("twins", [left, right], package)
    assert status_of("twins", package).state == "checked"


def test_evidence_may_rest_on_more_modules_than_the_systems(package) -> None:
    pass_contract("moth", "moth", MOTH, package)
    put_source(package, "regardant.claim.moth", "x = 1\n")
    file_claim("moth", [MOTH, "regardant.claim.moth"], package)
    assert status_of("moth", package).state == "checked"
    put_source(package, "regardant.claim.moth", "x = 2\n")
    assert "regardant.claim.moth" in status_of("moth", package).reasons[0]
    source.locate("regardant.claim.moth", package=package).unlink()
    assert status_of("moth", package).reasons == (
        "the claim's evidence is for regardant.claim.moth, which does not exist any more",
    )


@pytest.mark.parametrize("kind", SYSTEMS)
def test_a_skeleton_is_not_built_however_well_it_keeps_its_contract(package, kind: str) -> None:
    made = scaffold("bare", kind=kind, package=package)
    module = f"regardant.{kind}.bare"
    pass_contract("bare", "bare", module, package)
    assert status_of("bare", package) == Status(
        "card", (f"{module} is still the skeleton that `regardant new` wrote",)
    )
    made.system.write_text(made.system.read_text(encoding="utf-8") + "\n\nWIDTH = 3\n", encoding="utf-8")
    pass_contract("bare", "bare", module, package)
    assert status_of("bare", package).state == "built"


def test_a_card_without_a_system_and_a_baseline(package) -> None:
    assert status_of("bare", package) == Status("card", ("no system yet",))
    assert status_of("yardstick", package).state == "card"
    yard = "regardant.sequence.yardstick"
    put_source(package, yard, "class Yard: ...\n")
    pass_contract("yardstick", "yardstick", yard, package)
    assert status_of("yardstick", package).state == "built"


def test_every_real_card_has_a_status() -> None:
    assert {status(each).state for each in cards()} <= {"card", "built", "checked"}
