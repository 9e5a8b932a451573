"""Everything by name, over the real atlas and over a small one."""

import re
import subprocess
import sys

import pytest

import regardant
from regardant.atlas import catalog
from tests.atlas.small_package import a_card, put_card

PAPERS = 214


def test_there_are_214_papers_and_the_baselines() -> None:
    deck = catalog.cards()
    papers = [card for card in deck if card.kind != "baseline"]
    assert len(papers) == PAPERS
    baselines = [card.slug for card in deck[PAPERS:]]
    assert baselines == sorted(baselines) and {"sliding-window", "softmax"} <= set(baselines)
    assert all(card.kind == "baseline" for card in deck[PAPERS:])
    assert len({card.slug for card in deck}) == len(deck)


@pytest.mark.parametrize("card", catalog.cards(), ids=lambda card: card.slug)
def test_every_card_is_complete(card) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card.slug)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
    assert 2014 <= card.year <= 2026
    assert card.year - int("20" + card.arxiv[:2]) in (-1, 0, 1, 2, 3)
    assert not card.code or re.fullmatch(r"[\w.-]+/[\w.-]+", card.code)
    assert 40 <= len(card.summary) <= 400 and card.summary.endswith(".")
    assert len(card.summary.split(". ")) <= 3
    assert 10 <= len(card.claim) <= 300
    assert 3 <= len(card.tags) <= 8 and len(set(card.tags)) == len(card.tags)
    if len(card.provides) == 1:
        assert list(card.provides) == [card.slug]


def test_every_system_has_a_name_of_its_own_and_a_known_kind() -> None:
    everything = catalog.systems()
    assert {system.kind for system in everything.values()} <= set(catalog.KINDS)
    slugs = {card.slug: card for card in catalog.cards()}
    for name, system in everything.items():
        assert name not in slugs or system.slug == name
    assert set(catalog.names()) == set(everything)
    assert catalog.names() == sorted(catalog.names())


def test_names_by_folder_by_card_kind_and_not_at_all(package) -> None:
    assert catalog.names(package=package) == ["left", "moth", "right", "yardstick"]
    assert catalog.names("sequence", package=package) == ["moth", "yardstick"]
    assert catalog.names("grid", package=package) == ["left", "right"]
    assert catalog.names("baseline", package=package) == ["yardstick"]
    assert catalog.names("gate", package=package) == []
    assert catalog.names("vision", package=package) == []
    with pytest.raises(
        ValueError, match=r"no kind is called 'grids'; the kinds are sequence, grid, gate, .*vision"
    ):
        catalog.names("grids", package=package)


def test_a_card_by_slug_and_by_system(package) -> None:
    assert catalog.card("twins", package=package).slug == "twins"
    assert catalog.card("right", package=package).slug == "twins"
    assert catalog.card("yardstick", package=package).kind == "baseline"
    with pytest.raises(ValueError, match="no card or system is called 'mith'; the nearest are moth"):
        catalog.card("mith", package=package)
    for name in ("../cards/moth", "", ".", "a/b", "moth\0"):
        with pytest.raises(ValueError, match="no card or system is called"):
            catalog.card(name, package=package)


def test_two_cards_may_not_share_a_system_name(package) -> None:
    put_card(package, a_card("thief", provides={"moth": "regardant.sequence.thief:Thief"}))
    with pytest.raises(ValueError, match="'moth' and 'thief' both provide 'moth'"):
        catalog.systems(package=package)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mohh", "no system is called 'mohh'; the nearest are moh"),
        (
            "quantizable-transformers",
            "several systems: clipped-softmax, gated-attention; create one of these",
        ),
        ("autostudio", "'autostudio' is a card that has no system yet"),
        ("xyzzyxyzzy", "no system is called 'xyzzyxyzzy'"),
    ],
)
def test_what_cannot_be_created_is_said_in_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        regardant.create(name, dim=8, heads=2)
    assert "\n" not in str(raised.value)


class Base:
    def __init__(self, dim: int, heads: int, *, causal: bool = False, window: int = 2) -> None:
        if window < 1:
            raise ValueError(f"window is {window}, but a token must see itself")
        self.config = (dim, heads, causal, window)


class Derived(Base):
    def __init__(self, *, routed_heads: int = 1, **shared) -> None:
        super().__init__(**shared)


class Open(Derived):
    """Takes its arguments as they come."""


def anything(**config):
    return config


def test_keywords_are_those_of_the_classes_behind_too() -> None:
    names, open_ended = catalog.keywords(Open)
    assert list(names) == ["routed_heads", "dim", "heads", "causal", "window"]
    assert not open_ended
    assert catalog.keywords(anything) == ({}, True)


def test_a_wrong_keyword_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"'moth' takes no 'route_head' \(given 3\); the nearest are routed_heads"
    ):
        catalog.bind("moth", Open, {"dim": 8, "heads": 2, "route_head": 3})
    with pytest.raises(
        ValueError, match=r"'moth' takes no 'zzz' .* it takes routed_heads, dim, heads, causal, window"
    ):
        catalog.bind("moth", Open, {"dim": 8, "heads": 2, "zzz": 3})
    with pytest.raises(ValueError, match="'moth' needs heads, which is not given"):
        catalog.bind("moth", Open, {"dim": 8})
    with pytest.raises(ValueError, match="'moth' needs dim, heads, which are not given"):
        catalog.bind("moth", Open, {})
    catalog.bind("moth", Open, {"dim": 8, "heads": 2, "window": 1})
    catalog.bind("moth", anything, {"whatever": 8})


def test_the_package_offers_all_and_imports_no_torch() -> None:
    script = (
        "import sys, regardant; regardant.names(); regardant.card('moh'); "
        "print('torch' in sys.modules, 'typer' in sys.modules, 'Causal' in dir(regardant))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


@pytest.mark.parametrize("name", regardant.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(regardant, name) is not None


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Casual'"):
        _ = regardant.Casual
