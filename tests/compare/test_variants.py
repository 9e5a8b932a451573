"""The table of named variants: counts are the papers', or the card says why not; the page is up to date."""

import pytest

from regardant.atlas import catalog
from regardant.atlas.card import read, write
from regardant.atlas.figures import PaperFigures, Printed
from regardant.compare import variants
from regardant.compare.backbone_cost import Counted
from regardant.compare.variants import DOCS, MISSING, Row, names, row, table
from tests.atlas.small_package import a_card, put_card


@pytest.mark.parametrize("name", names())
def test_counts_are_the_papers_or_the_card_says_how_it_counts(name):
    found = row(name)
    if any(printed is not None for _, _, printed in found.pairs()):
        assert found.agrees != bool(found.paper.note)


def test_the_page_is_up_to_date(capsys):
    assert variants.main(["--check"]) == 0, "run python -m regardant.compare.variants"


def test_a_page_that_is_old_is_told_and_written_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(variants, "names", lambda: ["pyramid_tiny"])
    path = tmp_path / "variants.md"
    assert variants.main(["--check"], path) == 1 and not path.exists()
    assert "not up to date" in capsys.readouterr().err
    assert variants.main([], path) == variants.main(["--check"], path) == 0
    assert f"| {MISSING} |" in path.read_text(encoding="utf-8")


def test_every_variant_has_its_line_with_what_its_card_says():
    page = DOCS.read_text(encoding="utf-8")
    for name in names():
        (line,) = (each for each in page.splitlines() if each.startswith(f"| `{name}`"))
        cells, figures = line.split(" | "), catalog.card(name).figures.get(name, PaperFigures())
        for at, printed in ((4, figures.parameters), (7, figures.multiply_adds)):
            assert cells[at] == (MISSING if printed is None else printed.text)
        assert not figures.note or figures.note in page


@pytest.mark.parametrize(
    ("text", "value", "inside", "outside"),
    [
        ("31M", 31e6, (30.5e6, 31.5e6), (30.4e6, 31.6e6)),
        ("5.6G", 5.6e9, (5.55e9, 5.65e9), (5.53e9, 5.67e9)),
        ("120M", 120e6, (118.8e6, 121.2e6), (118.7e6, 121.3e6)),  # here a percent is more than the digit
        ("2.50K", 2500, (2475, 2525), (2474, 2526)),
    ],
)
def test_printed_figures_agree_to_a_percent_or_to_their_last_digit(text, value, inside, outside):
    printed = Printed(text)
    assert printed.value == pytest.approx(value)
    assert all(map(printed.agrees, inside)) and not any(map(printed.agrees, outside))
    assert printed.difference(1.5 * value) == pytest.approx(0.5)


def test_a_table_shows_differences_and_shared_notes_once():
    rows = [
        Row(
            name, "pier", Counted(parameters=30_000_000, multiply_adds=6 * 10**9, size=224),
            PaperFigures(Printed("31M"), Printed("5.0G"), note="Counted on a pier."),
        )
        for name in ("pier_tiny", "pier_large")
    ]  # fmt: skip
    lines = table(rows).splitlines()
    assert lines[2] == "| `pier_tiny` | pier | 224 | 30.00M | 31M | -3.2 % | 6.00G | 5.0G | +20.0 % | [1] |"
    assert lines[-1] == "1. Counted on a pier." and lines[3].endswith("[1] |")


def test_a_card_keeps_its_figures(tmp_path):
    figures = {
        "pier_tiny": PaperFigures(Printed("1.5M"), Printed("3G"), side=64, fused=True, note="“so”"),
        "pier_large": PaperFigures(multiply_adds=Printed("3.0G")),
    }
    provides = {"pier": "regardant.backbone.pier:Pier"}
    card = a_card("pier", provides=provides, variants=dict.fromkeys(figures, "pier"), figures=figures)
    path = put_card(tmp_path, card)
    assert read(path) == card and write(read(path)) == write(card)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"parameters": "about 3M"}, "a figure is 'about 3M', but it is a number with K, M or G behind it"),
        (
            {"parameters": "3M", "flops": "2G"},
            "a variant hold flops, but they are parameters, multiply_adds, side",
        ),
        ({"side": 64}, "hold no parameters, multiply_adds or note"),
    ],
)
def test_figures_that_are_none_are_refused(entry, sentence):
    with pytest.raises(ValueError, match=sentence):
        PaperFigures.of(entry)


def test_figures_of_no_variant_are_refused(tmp_path):
    figures = {"pier_tiny": PaperFigures(Printed("1M"))}
    path = put_card(tmp_path, a_card("pier", figures=figures))
    with pytest.raises(ValueError, match="has figures of 'pier_tiny', which is none of its variants"):
        read(path)
