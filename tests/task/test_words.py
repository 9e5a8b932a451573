"""Words of bytes, masking and noise."""

import pytest
import torch

from regardant.structure.byte2word import MASK, PAD
from regardant.task.words import mask_words, noisy, split_words, word_symbols

TEXT = "Return the file's mode, e.g. 0o644,\n  or None if the  path is gone."


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_words_keep_every_character():
    words = split_words(TEXT)
    assert "".join(words) == TEXT
    assert words[:6] == ["Return", " the", " file", "'", "s", " mode"]


def test_symbols_by_hand():
    found = word_symbols(["ab", " é", "longer"], longest=4, length=4)
    assert found.tolist() == [
        [97, 98, PAD, PAD],
        [32, 0xC3, 0xA9, PAD],
        [108, 111, 110, 103],
        [PAD] * 4,
    ]
    assert word_symbols(["a", "b"], longest=1, length=1).tolist() == [[97]]


def test_whole_words_are_masked_in_the_shares_of_bert():
    words = [f"w{at}" for at in range(400)]
    symbols = word_symbols(words, longest=6, length=500).expand(20, -1, -1)
    masked, chosen = mask_words(symbols, draws(), share=0.15)
    assert not chosen[:, 400:].any()
    assert torch.equal(masked[~chosen], symbols[~chosen])
    assert float(chosen[:, :400].double().mean()) == pytest.approx(0.15, abs=0.01)
    hidden = (masked[..., 0] == MASK) & (masked[..., 1:] == PAD).all(-1)
    same = (masked == symbols).all(-1)
    count = chosen.sum()
    assert float((hidden & chosen).sum() / count) == pytest.approx(0.8, abs=0.04)
    assert float((same & chosen).sum() / count) == pytest.approx(0.1, abs=0.03)
    assert not (masked[chosen] == PAD).all(-1).any()


def test_noise_spoils_so_many_words_by_one_letter():
    text = " ".join(["window"] * 2000)
    found = noisy(text, draws(), share=0.3).split(" ")
    assert len(found) == 2000
    spoiled = [word for word in found if word != "window"]
    assert len(spoiled) / 2000 == pytest.approx(0.3, abs=0.04)
    assert {len(word) for word in spoiled} == {5, 6, 7}
    assert {"winodw", "indow"} <= set(spoiled)


def test_noise_leaves_single_letters_marks_and_spaces():
    assert noisy("a - b, (c)", draws(), share=1.0) == "a - b, (c)"
    assert noisy(TEXT, draws(), share=0.0) == TEXT
    assert noisy(TEXT, draws(1), share=0.5) == noisy(TEXT, draws(1), share=0.5)


def test_bad_shares_are_refused():
    with pytest.raises(ValueError, match="share is 0"):
        mask_words(torch.zeros(1, 1, 1, dtype=torch.long), draws(), share=0.0)
    with pytest.raises(ValueError, match="share is 1"):
        noisy("word", draws(), share=1.5)
    with pytest.raises(ValueError, match="longest is 0"):
        word_symbols(["a"], longest=0)
