import pytest
import torch
from torch import nn

from regardant.lens.concept_depth import ConceptDepth, Depth, quantized_weights
from regardant.task.concepts import CONCEPTS, ConceptTexts, concept_texts
from regardant.task.world_facts import COUNTRIES


def test_known_answers():
    for seed in range(2):
        for answer in ConceptDepth.known_answers(torch.Generator().manual_seed(seed)):
            assert answer.error() <= answer.tolerance, answer.what


def test_pitfall_the_threshold_stands_beside_ratios_that_chance_moves():
    noisy = Depth(torch.tensor([0.5, 0.45, 0.52, 0.49, 0.9, 0.9]))
    assert noisy.jump == pytest.approx(0.4)  # 0.52 / 0.45: chance
    assert noisy.reached == pytest.approx(0.8)
    assert torch.tensor(Depth(torch.tensor([0.5, 0.5, 0.5])).jump).isnan()


@pytest.mark.parametrize("concept", sorted(CONCEPTS))
def test_pitfall_fillers_are_disjoint_and_texts_end_alike(concept):
    texts = concept_texts(concept, 120, generator=torch.Generator().manual_seed(0))
    assert int(texts.labels.sum()) == 60 and len(set(texts.texts)) == 120
    assert {text[-7:] for text in texts.texts} == {"Answer:"}
    train = texts.split(share=2 / 3, generator=torch.Generator().manual_seed(1))
    groups = [{g for g, own in zip(texts.groups, train.tolist()) if own is side} for side in (True, False)]
    assert not groups[0] & groups[1] and 40 < int(train.sum()) < 105
    for side in (train, ~train):
        assert 0.2 < float(texts.labels[side].double().mean()) < 0.8
    again = concept_texts(concept, 120, generator=torch.Generator().manual_seed(0))
    assert again.texts == texts.texts


def test_labels_are_true():
    draw = torch.Generator().manual_seed(3)
    texts = concept_texts("surface", 40, generator=draw)
    assert [any(c.isdigit() for c in text) for text in texts.texts] == texts.labels.tolist()
    texts = concept_texts("comparison", 40, generator=draw)
    for text, label in zip(texts.texts, texts.labels.tolist()):
        numbers = [int(word.strip(".")) for word in text.split("\n")[0].split() if word.strip(".").isdigit()]
        assert (numbers[0] > numbers[1]) is label
    texts = concept_texts("parity", 40, generator=draw)
    for text, label in zip(texts.texts, texts.labels.tolist()):
        assert (text.count(" flips") % 2 == 0) is label
    texts = concept_texts("fact", 40, generator=draw)
    where = {f"The city of {city} is in {own.name}." for own in COUNTRIES for city in own.cities}
    assert [text.split("\n")[0] in where for text in texts.texts] == texts.labels.tolist()


def test_noise_stands_before_about_half_of_the_texts():
    texts = concept_texts("sentiment", 100, generator=torch.Generator().manual_seed(0))
    noisy = texts.noisy(generator=torch.Generator().manual_seed(1))
    changed = [a != b for a, b in zip(texts.texts, noisy.texts)]
    assert 30 < sum(changed) < 70
    assert all(b.endswith(a) for a, b in zip(texts.texts, noisy.texts))
    assert noisy.labels is texts.labels and noisy.groups == texts.groups


def test_pitfall_texts_that_end_in_different_tokens_are_refused():
    texts = ConceptTexts(("a b", "a c"), torch.tensor([True, False]), ("a", "b"))

    class Letters:
        def __call__(self, text):
            return type("Encoded", (), {"input_ids": [ord(letter) % 24 for letter in text]})

    with pytest.raises(ValueError, match="the texts end in different tokens"):
        ConceptDepth().states(nn.Linear(2, 2), Letters(), texts)


def test_rounded_weights_come_back_also_after_an_error():
    layer = nn.Linear(5, 3)
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="stop"), quantized_weights(layer, bits=8):
        assert 0 < float((layer.weight.detach() - before).abs().max()) < float(before.abs().max()) / 127
        raise RuntimeError("stop")
    assert torch.equal(layer.weight, before)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="concept"):
        concept_texts("irony", 4, generator=torch.Generator())
    with pytest.raises(ValueError, match="count is 3"):
        concept_texts("fact", 3, generator=torch.Generator())
    with pytest.raises(ValueError, match="bits is 1"), quantized_weights(nn.Linear(2, 2), bits=1):
        pass
