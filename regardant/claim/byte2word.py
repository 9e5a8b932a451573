"""Do words made of bytes do what a table of sub-words does, at a tenth of its weights, and bear noise better?

Which module is a docstring from? The same two layers read it through a table of sub-words (byte pairs merged
on the same library), through words pooled from bytes by attention, and through words that are the means of
their bytes. Then the texts that are held out are spoiled by careless typing.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, quality
from regardant.core.record import Record
from regardant.structure.byte2word import PAD, SYMBOLS, ByteWordEmbedding
from regardant.task.docstrings import Docstring, read_docstrings
from regardant.task.held_out import validation_generator
from regardant.task.score import hits, label_loss
from regardant.task.words import noisy, split_words, word_symbols
from regardant.train.fit import evaluate
from regardant.train.model import Trunk

CLASSES, VOCABULARY = 10, 8000
DIM, HEADS, LENGTH = 64, 4, 32
BYTE_DIM, LONGEST = 48, 16
NOISE = (0.1, 0.2, 0.3)
TRAINING = dict(steps=500, batch=32, learning_rate=3e-3)


@cache
def texts() -> tuple[list[Docstring], list[str]]:
    """The docstrings of the ten modules with the most, in an order of our own, and the modules' names."""
    most = [module for module, _ in Counter(each.module for each in read_docstrings()).most_common(CLASSES)]
    found = [each for each in read_docstrings() if each.module in most]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[at] for at in order], most


@cache
def merges():
    """Byte pairs, merged on all docstrings that are not held out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    held_out = {each.text for each in texts()[0][: len(texts()[0]) // 4]}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(
        [each.text for each in read_docstrings() if each.text not in held_out], trainer
    )
    return tokenizer


@dataclass(frozen=True)
class Module:
    """Which module is a docstring from? A quarter of the texts is held out, and spoiled by `noise`."""

    units: Literal["sub-words", "bytes"]
    noise: float = 0.0
    name: ClassVar[str] = "modules of docstrings"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, labels = read(self.units, 0.0)
        chosen = torch.randint(len(labels) // 4, len(labels), (size,), generator=generator)
        return inputs[chosen], labels[chosen]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, labels = read(self.units, self.noise)
        yield inputs[: len(labels) // 4], labels[: len(labels) // 4]

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


@cache
def read(units: str, noise: float) -> tuple[Tensor, Tensor]:
    """All texts in units, and their labels; sub-words count from 1, 0 is none."""
    found, modules = texts()
    generator = validation_generator()
    spoiled = [noisy(each.text, generator, share=noise) for each in found]
    if units == "bytes":
        inputs = torch.stack(
            [word_symbols(split_words(text), longest=LONGEST, length=LENGTH) for text in spoiled]
        )
    else:
        inputs = torch.zeros(len(found), LENGTH, dtype=torch.long)
        for at, text in enumerate(spoiled):
            ids = merges().encode(text).ids[:LENGTH]
            inputs[at, : len(ids)] = torch.tensor(ids)
    return inputs, torch.tensor([modules.index(each.module) for each in found])


class MeanOfBytes(nn.Module):
    """A word is the mean of its bytes (and their places): no attention."""

    def __init__(self):
        super().__init__()
        self.byte, self.place = nn.Embedding(SYMBOLS, BYTE_DIM), nn.Parameter(torch.zeros(LONGEST, BYTE_DIM))
        self.norm, self.widen = nn.LayerNorm(BYTE_DIM), nn.Linear(BYTE_DIM, DIM)
        for table in (self.byte.weight, self.place):
            nn.init.normal_(table, std=0.02)

    def forward(self, symbols: Tensor) -> Tensor:
        real = ByteWordEmbedding.real(symbols)[..., None]
        mean = ((self.byte(symbols) + self.place) * real).sum(2) / real.sum(2)
        return self.widen(self.norm(mean))


class SubWords(nn.Embedding):
    """The table."""

    def __init__(self):
        super().__init__(merges().get_vocab_size(), DIM)
        nn.init.normal_(self.weight, std=0.02)


class Reader(nn.Module):
    """Units → classes: their vectors, two layers of attention, the mean over what is no filling."""

    def __init__(self, embed):
        super().__init__()
        self.embed = embed()
        mixers = [partial(create, "softmax", dim=DIM, heads=HEADS)] * 2
        self.trunk, self.head = Trunk(mixers, DIM, size=(LENGTH,)), nn.Linear(DIM, CLASSES)

    def forward(self, units: Tensor, *, record: Record | None = None) -> Tensor:
        real = (units != PAD).any(2) if units.ndim == 3 else units != 0
        x = self.trunk(self.embed(units), record=record) * real[..., None]
        return self.head(x.sum(1) / real.sum(1, keepdim=True))


EMBEDDINGS = {
    "byte2word": partial(create, "byte2word", dim=DIM, byte_dim=BYTE_DIM, longest=LONGEST),
    "mean of bytes": MeanOfBytes,
    "sub-words": SubWords,
}


def trained(name: str):
    units = "sub-words" if name == "sub-words" else "bytes"

    def unit(run) -> dict[str, float]:
        model = run.fit(partial(Reader, EMBEDDINGS[name]), Module(units), **TRAINING)
        spoiled = [evaluate(model, Module(units, noise)) for noise in NOISE]
        clean = evaluate(model, Module(units))
        return {
            "clean": clean,
            "spoiled": sum(spoiled) / len(NOISE),
            "lost": clean - sum(spoiled) / len(NOISE),
            "weights": sum(weight.numel() for weight in model.embed.parameters()),
        }

    return unit


def claim(context: Context) -> Outcome:
    found = context.measure({name: trained(name) for name in EMBEDDINGS})
    ours, mean, table = (found[name] for name in EMBEDDINGS)
    noise = ", ".join(f"{each:.0%}" for each in NOISE)
    return Outcome(
        setting=f"first paragraphs of docstrings of the standard library, {CLASSES} modules, {LENGTH} words "
        f"or sub-words; two layers, width {DIM}, {HEADS} heads, {TRAINING['steps']} steps of "
        f"{TRAINING['batch']}; noise in {noise} of the words; the paper pretrains BERT-base on books",
        figures=[
            Figure.of("accuracy", found, "clean", ours="byte2word"),
            Figure.of(f"accuracy under noise, mean over {noise}", found, "spoiled", ours="byte2word"),
            Figure.of("weights at the input", found, "weights", ours="byte2word"),
        ],
        criteria=[
            cost("the input takes at most 15 % of the table's weights",
                 ours["weights"].mean / table["weights"].mean, at_most=0.15),
            quality("accuracy is at most 3 points behind sub-words",
                    ours["clean"].mean - table["clean"].mean, at_least=-0.03),
            quality("noise costs fewer points than it costs sub-words",
                    table["lost"].mean - ours["lost"].mean, at_least=0.0),
            quality("the mean of a word's bytes is worse", ours["clean"].mean - mean["clean"].mean,
                    at_least=0.0),
        ],
    )  # fmt: skip
