"""Cards as files: what is read, what is written, what is refused."""

import tomllib

import pytest

from regardant.atlas.card import Card, provide, read, write
from tests.atlas.small_package import a_card, put_card


def test_what_is_written_is_read_back(tmp_path) -> None:
    card = a_card(
        "odd",
        title='A "quoted" title: über \\ back\u007fslash',
        tags=tuple(f"a rather long tag, number {number}" for number in range(9)),
        summary=" ".join(f"word{number}" for number in range(80)),
        claim='1 < 2, "so they say", in C:\\temp ' * 5 + "end",
        provides={"odd": "regardant.sequence.odd:Odd", "odd-2": "regardant.grid.odd:Odd2"},
    )
    path = put_card(tmp_path, card)
    assert read(path) == card
    assert write(read(path)) == path.read_text(encoding="utf-8")
    assert max(len(line) for line in path.read_text(encoding="utf-8").splitlines()) <= 100


def test_a_changed_file_is_read_again(tmp_path) -> None:
    path = put_card(tmp_path, a_card("moth"))
    assert read(path).year == 2024
    put_card(tmp_path, a_card("moth", year=19999))
    assert read(path).year == 19999


def test_addresses() -> None:
    card = a_card("moth", code="owner/name")
    assert card.arxiv_url == "https://arxiv.org/abs/2401.00001"
    assert card.code_url == "https://github.com/owner/name"
    assert a_card("moth").code_url == ""


def test_a_system_knows_its_module_class_and_kind() -> None:
    (system,) = a_card("x", provides={"y": "regardant.grid.y:Why"}).systems
    assert (system.name, system.slug, system.module, system.attribute, system.kind) == (
        "y",
        "x",
        "regardant.grid.y",
        "Why",
        "grid",
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace('slug = "moth"', 'slug = "mouth"'), "its file name says 'moth'"),
        (
            lambda text: text.replace('fidelity = "paper"', 'fidelity = "good"'),
            "one of official, paper, reading",
        ),
        (lambda text: text.replace("year = 2024\n", ""), "lacks year"),
        (lambda text: text + "[", "not valid TOML"),
        (lambda text: provide(text, "moth", "sequence.moth"), "'regardant.folder.module:Class'"),
        (lambda text: provide(text, "moth", "regardant.moth:Moth"), "'regardant.folder.module:Class'"),
    ],
)
def test_a_broken_card_says_which_and_why(tmp_path, change, sentence: str) -> None:
    path = put_card(tmp_path, a_card("moth"))
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=r"moth\.toml") as raised:
        read(path)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_providing_keeps_every_other_line() -> None:
    for card in (a_card("moth"), a_card("moth", provides={"old": "regardant.sequence.old:Old"})):
        text = "# a remark\n" + write(card)
        grown = provide(text, "moth", "regardant.sequence.moth:Moth")
        assert tomllib.loads(grown)["provides"]["moth"] == "regardant.sequence.moth:Moth"
        assert [line for line in text.splitlines() if line not in grown.splitlines()] == []
        assert {**tomllib.loads(grown), "provides": card.provides} == {
            **tomllib.loads(text),
            "provides": card.provides,
        }


def test_providing_where_the_card_has_no_claim() -> None:
    text = write(a_card("moth")).partition("\n[claim]")[0]
    assert tomllib.loads(provide(text, "a", "regardant.gate.a:A"))["provides"] == {"a": "regardant.gate.a:A"}


def test_cards_are_values() -> None:
    assert a_card("moth") == a_card("moth")
    assert isinstance(a_card("moth"), Card)
    with pytest.raises(AttributeError):
        a_card("moth").year = 2025
