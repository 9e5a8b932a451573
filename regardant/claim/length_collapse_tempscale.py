"""Do a sentence encoder's embeddings of long texts bunch together, and does a temperature below one keep them
apart?

all-MiniLM-L6-v2 on the code of the standard library's functions: the same functions, cut after 16 to 256
tokens.
"""

import ast
import inspect
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from regardant.claim.context import Context, Run
from regardant.claim.outcome import Figure, Outcome, quality
from regardant.core.errors import require
from regardant.edit.apply import apply
from regardant.edit.language.temp_scale import TempScale
from regardant.host.seam import Seam
from regardant.lens.low_pass import gain, likeness
from regardant.task.bytes import library_folder, source_files
from regardant.world.pretrained import minilm

LENGTHS = (16, 32, 64, 128, 256)
TEMPERATURES = (1.0, 0.95, 0.9, 0.8, 0.7)
TEXTS, HALF = 60, 255
MAPS = 12
"""Texts whose maps are looked at."""


class Gains:
    """Reads every map, and keeps the mean of what it lets through."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def stages(self, site):
        return frozenset({"read"})

    def read(self, call, heads, weights, site, run):
        self.found.append(float(gain(call.maps()).mean()))


@cache
def functions() -> list[list[int]]:
    """The tokens of functions long enough for two halves of 256, in the order of the files."""
    _, tokenizer = minilm()
    found = []
    for path in source_files(library_folder()):
        try:
            text = (library_folder() / path).read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno > 40:
                code = inspect.cleandoc(ast.get_source_segment(text, node))
                ids = tokenizer(code, add_special_tokens=False)["input_ids"]
                if len(ids) >= 2 * HALF:
                    found.append(ids)
    require(len(found) >= 3 * TEXTS, f"there are {len(found)} long functions, but {3 * TEXTS} are wanted")
    return found


def embed(model, ids: Tensor, first: int, *, pool: str = "mean") -> Tensor:
    """Embeddings of texts of one length: the mean over tokens, or the first token's."""
    ids = torch.cat([torch.full((len(ids), 1), first), ids], dim=1)
    with torch.no_grad():
        states = torch.cat([model(input_ids=part).last_hidden_state for part in ids.split(20)])
    return states.mean(1) if pool == "mean" else states[:, 0]


def collapse(run: Run) -> dict[str, float]:
    model, tokenizer = minilm()
    generator = torch.Generator().manual_seed(run.seed)
    chosen = torch.randperm(len(functions()), generator=generator)[:TEXTS]
    texts = torch.tensor([functions()[i][: 2 * HALF] for i in chosen])
    first, words = tokenizer.cls_token_id, len(tokenizer)
    drawn = torch.randint(2000, words, texts[:, :HALF].shape, generator=generator)
    found: dict[str, float] = {}
    for temperature in TEMPERATURES:
        with apply(model, TempScale(temperature)):
            for n in LENGTHS:
                if temperature in (1.0, 0.8):
                    key = f"{temperature} {n}"
                    found[f"likeness {key}"] = likeness(embed(model, texts[:, : n - 1], first))
                    found[f"first {key}"] = likeness(embed(model, texts[:, : n - 1], first, pool="first"))
                    found[f"drawn {key}"] = likeness(embed(model, drawn[:, : n - 1], first))
            left, right = (embed(model, texts[:, part], first) for part in (slice(HALF), slice(HALF, None)))
        near = torch.nn.functional.normalize(left, dim=-1) @ torch.nn.functional.normalize(right, dim=-1).mT
        found[f"retrieved {temperature}"] = float((near.argmax(1) == torch.arange(TEXTS)).double().mean())
        run.context.report_within((TEMPERATURES.index(temperature) + 1) / len(TEMPERATURES))
    seam = Seam.of(model)
    for n in LENGTHS:
        lens = Gains()
        seam.enter([lens])
        try:
            embed(model, texts[:MAPS, : n - 1], first)
        finally:
            seam.leave([lens])
        found[f"gain {n}"] = sum(lens.found) / len(lens.found)
    return found


def claim(context: Context) -> Outcome:
    found = context.measure({"minilm": collapse})["minilm"]
    likeness = {tau: [found[f"likeness {tau} {n}"].mean for n in LENGTHS] for tau in (1.0, 0.8)}
    gains = {f"{n} tokens": found[f"gain {n}"] for n in LENGTHS}
    rise = {tau: row[-1] - row[1] for tau, row in likeness.items()}
    rising = min(after - before for before, after in pairwise(likeness[1.0]))
    falling = max(after.mean - before.mean for before, after in pairwise(gains.values()))
    retrieved = {tau: found[f"retrieved {tau}"] for tau in TEMPERATURES}
    best = max(retrieved[tau].mean for tau in TEMPERATURES[1:])
    figures = [
        Figure(f"mean cosine, {what}, τ = {tau}", {f"{n} tokens": found[f"{key} {tau} {n}"] for n in LENGTHS})
        for what, key in (("mean pooling", "likeness"), ("first token", "first"), ("drawn words", "drawn"))
        for tau in (1.0, 0.8)
    ]
    below = {f"τ = {tau}": row for tau, row in retrieved.items() if tau < 1}
    figures.append(Figure("largest singular value of a map without its mean", gains))
    figures.append(Figure("retrieval at 256 tokens", below, {"τ = 1": retrieved[1.0]}))
    more = likeness[0.8][-1] - likeness[1.0][-1]
    return Outcome(
        setting="all-MiniLM-L6-v2; 60 functions of the standard library a seed, the same in every bucket, "
        "cut after 16 to 256 tokens; retrieval of a function's second 255 tokens by its first among the 60",
        figures=figures,
        criteria=[
            quality("the cosine of different texts rises with each length, τ = 1", rising, at_least=0.0),
            quality("what a map lets through falls with each length", falling, at_most=0.0),
            quality("from 32 to 256 tokens it rises less at 0.8", rise[0.8] - rise[1.0], at_most=0.0),
            quality("long texts are less alike at 0.8", more, at_most=0.0),
            quality("the best τ < 1 retrieves no worse", best - retrieved[1.0].mean, at_least=0.0),
        ],
    )
