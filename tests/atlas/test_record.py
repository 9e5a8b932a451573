"""Evidence on file: merged part by part, written as a whole or not at all."""

import json
import os

import pytest

from regardant.atlas import record

VERDICT = {"passed": True, "fingerprint": "ab", "properties": {"causality": "holds"}}


def test_nothing_on_file_is_nothing(package) -> None:
    assert record.read("moth", package=package) == {}


def test_one_part_is_written_without_losing_the_others(package) -> None:
    record.record_contract("twins", "left", VERDICT, package=package)
    record.record_claim(
        "twins", {"verdict": "holds", "fingerprint": {"regardant.grid.left": "ab"}}, package=package
    )
    record.record_contract("twins", "right", VERDICT | {"passed": False}, package=package)
    record.record_contract("twins", "left", VERDICT | {"fingerprint": "cd"}, package=package)
    assert record.read("twins", package=package) == {
        "claim": {"verdict": "holds", "fingerprint": {"regardant.grid.left": "ab"}},
        "contract": {"left": VERDICT | {"fingerprint": "cd"}, "right": VERDICT | {"passed": False}},
    }
    assert record.read("moth", package=package) == {}


def test_the_same_evidence_is_the_same_text(package) -> None:
    path = record.record_contract("moth", "moth", VERDICT, package=package)
    before = path.read_bytes()
    record.record_contract("moth", "moth", dict(reversed(VERDICT.items())), package=package)
    assert path.read_bytes() == before
    assert before.endswith(b"}\n")
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("broken", [{"loss": float("nan")}, {"loss": object()}])
def test_what_json_cannot_say_leaves_the_file_as_it_was(package, broken) -> None:
    path = record.record_claim("moth", {"verdict": "holds"}, package=package)
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        record.record_claim("moth", broken, package=package)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["moth.json"]


def test_a_crash_while_writing_leaves_the_file_as_it_was(package, monkeypatch) -> None:
    path = record.record_claim("moth", {"verdict": "holds"}, package=package)
    before = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        record.record_claim("moth", {"verdict": "does not hold here"}, package=package)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["moth.json"]


@pytest.mark.parametrize("text", ['{"contract": ', "[]", '{"claim": 3}', '{"contract": {"moth": true}}', ""])
def test_a_corrupt_file_is_named_in_one_sentence(package, text: str) -> None:
    path = record.locate("moth", package=package)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"moth\.json is not .*; restore or delete it") as raised:
        record.read("moth", package=package)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="restore or delete it"):
        record.record_claim("moth", {"verdict": "holds"}, package=package)
    assert path.read_text() == text


def test_the_files_are_plain_json(package) -> None:
    path = record.record_claim("moth", {"wörds": "über"}, package=package)
    assert json.loads(path.read_text(encoding="utf-8")) == {"claim": {"wörds": "über"}}
    assert "über" in path.read_text(encoding="utf-8")
