"""Word vectors from bytes, and sub-words from word states."""

import pytest
import torch
import torch.nn.functional as F

from regardant.structure.byte2word import IGNORED, MASK, PAD, ByteWordEmbedding, SubwordSlots
from regardant.task.words import word_symbols


def made(**own):
    torch.manual_seed(0)
    return ByteWordEmbedding(12, **{"byte_dim": 8, "longest": 8, "heads": 2} | own).double()


def word(text, longest=8):
    return word_symbols([text], longest=longest)[None]


def test_pitfall_padded_bytes_weigh_nothing():
    layer = made()
    one = layer(word("cat"))
    with torch.no_grad():
        layer.byte.weight[PAD] += 100
    torch.testing.assert_close(layer(word("cat")), one, rtol=0, atol=0)
    torch.testing.assert_close(layer(word("cat")[..., :3]), one, rtol=0, atol=1e-12)


def test_pitfall_a_word_of_padding_is_no_nan():
    layer = made()
    symbols = word_symbols(["cat"], longest=8, length=3)[None]
    found = layer(symbols)
    assert found.isfinite().all()
    torch.testing.assert_close(found[0, 1], found[0, 2], rtol=0, atol=0)
    found.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in layer.parameters())


def test_pitfall_places_tell_words_of_the_same_letters_apart():
    layer = made()
    assert (layer(word("stop")) - layer(word("post"))).abs().max() > 1e-4
    torch.nn.init.zeros_(layer.place)
    torch.testing.assert_close(layer(word("stop")), layer(word("post")), rtol=0, atol=1e-12)


def test_pitfall_long_words_that_begin_alike_become_one():
    layer = made()
    one, other = layer(word("attention_heads")), layer(word("attention_maps"))
    assert torch.equal(one, other)
    longer = made(longest=16)
    apart = longer(word("attention_heads", 16)) - longer(word("attention_maps", 16))
    assert apart.abs().max() > 1e-5


def test_pitfall_padding_is_no_byte():
    """Byte 0 is a byte like any other, and UTF-8 uses all that are not marks."""
    layer = made()
    assert PAD >= 256
    assert (layer(word("a\0")) - layer(word("a"))).abs().max() > 1e-5
    symbols = word("é")
    assert symbols[0, 0, :3].tolist() == [0xC3, 0xA9, PAD]


def test_words_do_not_see_each_other():
    layer = made()
    both = torch.cat([word("red"), word("green")], dim=1)
    torch.testing.assert_close(layer(both)[:, 1:], layer(word("green")), rtol=0, atol=1e-12)


def test_a_mark_is_a_word_of_one_symbol():
    layer = made()
    mark = torch.full((1, 1, 8), PAD)
    mark[..., 0] = MASK
    e = layer.byte.weight[MASK] + layer.place[0]
    wanted = layer.widen(layer.norm(layer.to_out(layer.to_v(e))))
    torch.testing.assert_close(layer(mark)[0, 0], wanted, rtol=0, atol=1e-12)


def test_the_loss_is_over_the_slots_in_use():
    torch.manual_seed(0)
    head, states = SubwordSlots(6, 11, slots=3).double(), torch.randn(2, 4, 6, dtype=torch.float64)
    subwords = torch.randint(11, (2, 4, 3))
    subwords[:, :, 2] = IGNORED
    subwords[1, 3] = IGNORED
    wanted = F.cross_entropy(head(states).flatten(0, 2), subwords.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(head.loss(states, subwords), wanted, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="IGNORED throughout"):
        head.loss(states, torch.full_like(subwords, IGNORED))
    with pytest.raises(ValueError, match="subwords is"):
        head.loss(states, subwords[:, :2])


def test_bad_input_says_what_would_be_right():
    with pytest.raises(ValueError, match="with 1 to 8 symbols a word"):
        made()(word("cat", 9))
    with pytest.raises(ValueError, match="symbols go from 0 to 260"):
        made()(torch.tensor([[[0, 260]]]))
    with pytest.raises(ValueError, match="queries is 0"):
        made(queries=0)
    with pytest.raises(ValueError, match="slots is 0"):
        SubwordSlots(6, 11, slots=0)
