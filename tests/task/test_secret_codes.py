import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from regardant.task.secret_codes import SecretCode, draw_codes, needle_cases

FILLER = [f"This is sentence number {number} of the text." for number in range(60)]


@pytest.fixture
def tokenizer():
    """Bytes as tokens: what is in a span can be read."""
    vocabulary = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made)


def cases(tokenizer, seed=0, **keywords):
    draw = torch.Generator().manual_seed(seed)
    codes = draw_codes(2, generator=draw)
    settings = {"lengths": (200, 500), "depths": (0.0, 0.5, 1.0)} | keywords
    return codes, list(needle_cases(tokenizer, codes, generator=draw, filler=FILLER, **settings))


def test_pitfall_the_span_holds_the_code_wherever_the_sentence_lies(tokenizer):
    codes, found = cases(tokenizer)
    assert len(found) == 2 * 2 * 3
    for case in found:
        code = next(each for each in codes if each.name == case.name)
        text = "".join(tokenizer.convert_ids_to_tokens(case.answer.tolist())).replace("Ġ", " ")
        assert text == " " + code.code
        assert case.start > case.depth * 150


def test_a_prompt_asks_for_what_it_hides(tokenizer):
    codes, found = cases(tokenizer, depths=(0.5,), lengths=(300,))
    text = "".join(tokenizer.convert_ids_to_tokens(found[0].ids.tolist())).replace("Ġ", " ")
    assert text.count(codes[0].sentence) == 1
    assert text.endswith(f"The secret code of {codes[0].name} is")
    assert 300 <= len(found[0].ids) <= 700


def test_the_same_generator_gives_the_same_cases(tokenizer):
    (_, first), (_, again), (_, other) = cases(tokenizer), cases(tokenizer), cases(tokenizer, seed=1)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, again))
    assert not any(torch.equal(a.ids, b.ids) for a, b in zip(first, other))


def test_codes_differ_in_every_word():
    drawn = draw_codes(16, generator=torch.Generator().manual_seed(2))
    for words in ([c.name for c in drawn], *zip(*(c.code.split() for c in drawn))):
        assert len(set(words)) == 16
    assert SecretCode("Ada", "red sea 1234").sentence == "The secret code of Ada is red sea 1234."
    with pytest.raises(ValueError, match="there are words for 1 to 16 codes"):
        draw_codes(17, generator=torch.Generator())


def test_bad_settings_are_refused(tokenizer):
    with pytest.raises(ValueError, match="depths is"):
        cases(tokenizer, depths=(1.5,))
    with pytest.raises(ValueError, match="each is at least 32"):
        cases(tokenizer, lengths=(8,))
    with pytest.raises(ValueError, match="but the filler has"):
        cases(tokenizer, lengths=(100_000,))
