"""Search over the real cards: what a practitioner types finds what it should, whatever is typed."""

import pytest

from regardant.atlas.catalog import cards
from regardant.atlas.search import nearest, search
from tests.atlas.small_package import a_card

DECK = cards()


def found(words: str, limit: int = 10) -> list[str]:
    return [hit.card.slug for hit in search(words, DECK, limit=limit)]


@pytest.mark.parametrize(
    ("words", "slugs", "within"),
    [
        ("linear attention decay", {"lightning-attention-2", "tnl-lightning-attention"}, 5),
        ("kv cache compression", {"moa-mixture-of-sparse-attention", "echoatt"}, 3),
        ("channel attention", {"eca-net"}, 3),
        ("mixture of heads", {"moh"}, 3),
        ("sliding window", {"sliding-window", "faster-neighborhood-attention"}, 3),
        ("multiple instance learning", {"acmil", "aem"}, 2),
        ("outliers int8 quantisation", {"quantizable-transformers"}, 1),
        ("criss-cross", {"ccnet"}, 1),
        ("object hallucination vision language", {"agla", "damro"}, 4),
        ("neighbourhood", {"faster-neighborhood-attention"}, 1),
        ("retrieval heads", {"retrieval-head"}, 1),
        ("clipped-softmax", {"quantizable-transformers"}, 2),
        ("lightning-attention-2", {"lightning-attention-2"}, 1),
    ],
)
def test_what_is_looked_for_is_near_the_top(words: str, slugs: set[str], within: int) -> None:
    assert slugs <= set(found(words, within))


@pytest.mark.parametrize("card", DECK[::7], ids=lambda card: card.slug)
def test_a_card_is_first_for_its_own_title(card) -> None:
    assert found(card.title, 1) == [card.slug]


def test_scores_fall_and_the_limit_holds() -> None:
    hits = search("sparse attention for long context", DECK, limit=7)
    assert len(hits) == 7
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert search("sparse attention for long context", DECK, limit=3) == hits[:3]


def test_the_title_counts_more_than_the_summary() -> None:
    deck = [a_card("a", summary="A word on zebras."), a_card("b", title="Zebras at large"), a_card("c")]
    assert [hit.card.slug for hit in search("zebra", deck)] == ["b", "a"]


def test_inflections_and_both_spellings_are_one_word() -> None:
    deck = [a_card("a", tags=("quantization", "neighborhood")), a_card("b"), a_card("c")]
    for word in ("quantize", "quantised", "Quantisation", "neighbour", "NEIGHBOURHOODS"):
        assert [hit.card.slug for hit in search(word, deck)] == ["a"], word


def test_the_beginning_of_a_word_is_the_last_resort() -> None:
    assert {"agla", "damro"} <= set(found("hallucinat"))
    assert found("quantiz") != []


@pytest.mark.parametrize(
    "words",
    ['"', "a AND", "NEAR(", "x*", "title:moh", "(", "-moh", "'; DROP TABLE card", "moh OR", "^moh", "{a}"],
)
def test_any_punctuation_is_safe(words: str) -> None:
    if any(letter.isalnum() for letter in words):
        search(words, DECK)
    else:
        with pytest.raises(ValueError, match="has no word to search for"):
            search(words, DECK)


def test_bad_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        search("moh", DECK, limit=0)


def test_nothing_found_offers_the_nearest_words() -> None:
    assert search("qqqqq", DECK) == []
    assert nearest("qqqqq", DECK) == []
    assert "attention" in nearest("attentoin", DECK)
